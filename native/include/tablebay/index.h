// The index of one stripe of a table: 64-bit hash -> 32-bit row position, one cache line a bucket.
//
// A bucket holds 12 tags of 8 bits, a count of the entries that wanted it and had to go further, and 12 positions.
// A full bucket overflows into the next one; a search stops at a bucket that nothing overflowed from. The index
// does not hold keys: the caller confirms a candidate against the row. Growth is incremental: a larger index is
// started, each insertion moves a few buckets over, and a search looks in both until the old one is empty.
// Thread safety: the caller holds the stripe's lock, shared to search, exclusive to change.
#pragma once

#include <atomic>
#include <cstdint>
#include <utility>

#include "tablebay/hash.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace tablebay {

struct alignas(64) Bucket {
  static constexpr uint32_t kSlots = 12;
  uint8_t tags[kSlots];  // 0 = empty
  uint32_t overflowed;
  uint32_t positions[kSlots];

  // Bit i is set where tags[i] == tag.
  uint32_t Match(uint8_t tag) const {
#if defined(__SSE2__)
    const __m128i line = _mm_load_si128(reinterpret_cast<const __m128i*>(tags));
    const __m128i wanted = _mm_set1_epi8(static_cast<char>(tag));
    return static_cast<uint32_t>(_mm_movemask_epi8(_mm_cmpeq_epi8(line, wanted))) & 0xfffu;
#else
    uint32_t mask = 0;
    for (uint32_t i = 0; i < kSlots; ++i) mask |= static_cast<uint32_t>(tags[i] == tag) << i;
    return mask;
#endif
  }
};
static_assert(sizeof(Bucket) == 64);

class Index {
  struct Buckets {
    Bucket* buckets = nullptr;
    uint64_t mask = 0;
    uint32_t shift = 0;
    uint64_t Home(uint64_t hash) const { return hash >> shift & mask; }
    uint64_t Count() const { return buckets == nullptr ? 0 : mask + 1; }
  };

 public:
  static constexpr uint32_t kNone = 0xffffffffu;

  explicit Index(std::atomic<uint64_t>* bytes_total) : bytes_total_(bytes_total) {}
  ~Index();
  Index(const Index&) = delete;
  Index& operator=(const Index&) = delete;

  static uint8_t TagOf(uint64_t hash) {
    const uint8_t tag = static_cast<uint8_t>(hash);
    return tag == 0 ? 1 : tag;
  }

  // What a loop over many keys keeps in registers. Insertions leave it valid: they allocate and free nothing. An
  // entry that one of them moves over is missed by Guess, and found by Find.
  class View {
   public:
    explicit View(const Index& index) : current_(index.current_), old_(index.old_) {}

    void Prefetch(uint64_t hash) const {
      if (current_.buckets == nullptr) return;
      __builtin_prefetch(&current_.buckets[current_.Home(hash)], 0, 2);
      if (old_.buckets != nullptr) __builtin_prefetch(&old_.buckets[old_.Home(hash)], 0, 2);
    }

    // The positions whose tag fits, at the key's own bucket: `candidate(position)` for each, the likeliest first.
    // Where none fits and the bucket overflowed, the next bucket is fetched for GuessFurther.
    template <class Candidate>
    void Guess(uint64_t hash, Candidate&& candidate) const {
      if (current_.buckets == nullptr) return;
      const uint64_t home = current_.Home(hash);
      const Bucket& bucket = current_.buckets[home];
      const uint8_t tag = TagOf(hash);
      uint32_t mask = bucket.Match(tag);
      if (mask == 0) [[unlikely]] {
        if (bucket.overflowed != 0) __builtin_prefetch(&current_.buckets[(home + 1) & current_.mask], 0, 2);
        return;
      }
      do {
        candidate(bucket.positions[__builtin_ctz(mask)]);
        mask &= mask - 1;
      } while (mask != 0);
    }

    // For a key of which Guess found nothing: the first position whose tag fits, in the next bucket or in the index
    // that is being left; kNone where none does.
    uint32_t GuessFurther(uint64_t hash) const {
      if (current_.buckets == nullptr) return kNone;
      const uint8_t tag = TagOf(hash);
      const uint64_t home = current_.Home(hash);
      if (current_.buckets[home].overflowed != 0) {
        const Bucket& next = current_.buckets[(home + 1) & current_.mask];
        if (const uint32_t mask = next.Match(tag)) return next.positions[__builtin_ctz(mask)];
      }
      if (old_.buckets == nullptr) return kNone;
      const Bucket& old = old_.buckets[old_.Home(hash)];
      const uint32_t mask = old.Match(tag);
      return mask == 0 ? kNone : old.positions[__builtin_ctz(mask)];
    }

   private:
    const Buckets current_;
    const Buckets old_;
  };

  // The position for which `is_row(position)` holds among those whose tag fits; kNone where there is none.
  template <class IsRow>
  uint32_t Find(uint64_t hash, IsRow&& is_row) const {
    const uint32_t found = FindIn(current_, hash, is_row);
    return found != kNone || old_.buckets == nullptr ? found : FindIn(old_, hash, is_row);
  }

  // Makes room for `extra` more entries: afterwards so many Inserts cannot fail.
  // For entries that move, `hash_at(position)` gives the hash of a row and `hash_at.Prefetch(position)` says that
  // it will be asked for.
  // Throws StatusError(ResourceExhausted), with nothing changed, when the system has no memory.
  template <class HashAt>
  void Reserve(uint64_t extra, HashAt&& hash_at) {
    FreeEmptied();
    while (size_ + extra > Capacity(current_)) {
      if (old_.buckets != nullptr) {
        MoveBuckets(UINT64_MAX, hash_at);
        FreeEmptied();
        continue;
      }
      Grow(size_ + extra);
    }
  }

  // REQUIRES: room made by Reserve, and the key is absent.
  template <class HashAt>
  void Insert(uint64_t hash, uint32_t position, HashAt&& hash_at) {
    InsertInto(current_, hash, position);
    ++size_;
    // Two buckets an insertion: the old index is empty long before the new one is full.
    if (old_.buckets != nullptr) MoveBuckets(2, hash_at);
  }

  // REQUIRES: present, at `position`.
  void Erase(uint64_t hash, uint32_t position);
  // The row of `hash` moved. REQUIRES: present, at `from`.
  void Reposition(uint64_t hash, uint32_t from, uint32_t to);

  uint64_t bytes() const { return (current_.Count() + old_.Count()) * sizeof(Bucket); }

  bool growing() const { return old_.buckets != nullptr; }
  // Moves up to `buckets` more over, so that a table that no longer grows is soon done with growing.
  template <class HashAt>
  void Advance(uint64_t buckets, HashAt&& hash_at) {
    if (growing()) MoveBuckets(buckets, hash_at);
    FreeEmptied();
  }

  // What Reserve(extra) would allocate.
  uint64_t BytesToReserve(uint64_t extra) const {
    return size_ + extra > Capacity(current_) ? BucketsFor(size_ + extra) * sizeof(Bucket) : 0;
  }

 private:
  // 80 %: few buckets overflow, and a key costs 6.7 to 13.3 bytes.
  static uint64_t Capacity(const Buckets& side) { return side.Count() * Bucket::kSlots * 4 / 5; }
  static uint64_t BucketsFor(uint64_t entries);

  template <class IsRow>
  static uint32_t FindIn(const Buckets& side, uint64_t hash, IsRow& is_row) {
    if (side.buckets == nullptr) return kNone;
    const uint8_t tag = TagOf(hash);
    for (uint64_t b = side.Home(hash);; b = (b + 1) & side.mask) {
      const Bucket& bucket = side.buckets[b];
      for (uint32_t mask = bucket.Match(tag); mask != 0; mask &= mask - 1) {
        const uint32_t position = bucket.positions[__builtin_ctz(mask)];
        if (is_row(position)) return position;
      }
      if (bucket.overflowed == 0) return kNone;
    }
  }

  static void InsertInto(Buckets& side, uint64_t hash, uint32_t position);
  // The slot that holds `position`, in whichever index has it.
  std::pair<Buckets*, uint64_t> Locate(uint64_t hash, uint32_t position, uint32_t* slot);
  static void EraseFrom(Buckets& side, uint64_t hash, uint64_t bucket, uint32_t slot);
  void Grow(uint64_t entries);
  void Free(Buckets& side);

  template <class HashAt>
  void MoveBuckets(uint64_t count, HashAt& hash_at) {
    for (; count > 0 && moved_ <= old_.mask; --count, ++moved_) {
      Bucket& bucket = old_.buckets[moved_];
      for (uint32_t slot = 0; slot < Bucket::kSlots; ++slot) {
        if (bucket.tags[slot] != 0) hash_at.Prefetch(bucket.positions[slot]);
      }
      for (uint32_t slot = 0; slot < Bucket::kSlots; ++slot) {
        if (bucket.tags[slot] == 0) continue;
        const uint32_t position = bucket.positions[slot];
        const uint64_t hash = hash_at(position);
        EraseFrom(old_, hash, moved_, slot);
        InsertInto(current_, hash, position);
      }
    }
  }

  void FreeEmptied() {
    if (old_.buckets != nullptr && moved_ > old_.mask) Free(old_);
  }

  Buckets current_;
  Buckets old_;         // being emptied, bucket by bucket
  uint64_t moved_ = 0;  // buckets of old_ already emptied
  uint64_t size_ = 0;
  std::atomic<uint64_t>* bytes_total_;
};

}  // namespace tablebay
