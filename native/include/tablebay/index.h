// The index of one stripe of a table: 64-bit hash -> 32-bit row position, one cache line a bucket.
//
// A bucket holds 12 tags of 8 bits, a count of the entries that wanted it and had to go further, and 12 places: a
// few more bits of the hash, and a position. A full bucket overflows into the next one; a search stops at a bucket that
// nothing overflowed from. The index does not hold keys: the caller confirms a candidate against the row. Growth is
// incremental: a larger index is started, each insertion moves a few buckets over, and a search looks in both until the
// old one is empty.
//
// Buckets come in segments of 32 KiB, which share huge pages with those of other stripes.
//
// The sizes that an index grows through are a third apart, and those of each stripe lie elsewhere: the stripes of a
// table grow one after the other, and a row of a large table has 6.1 to 8.2 bytes of index, 7.1 on average, however
// many rows there are. Entries are in the order of the hash below the shard's bits at every size, so that moving to a
// larger index reads one and writes the other from front to back.
// Thread safety: the caller holds the stripe's lock, shared to search, exclusive to change.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>

#include "tablebay/hash.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace tablebay {

// How the 32 bits of a place are shared: bits of the hash above, a position below.
struct PlaceSplit {
  uint32_t position_mask;
  // The bits of the hash above the tag's, where a place has them.
  uint32_t MoreOf(uint64_t hash) const { return static_cast<uint32_t>(hash) << 16 & ~position_mask; }
  uint32_t PositionOf(uint32_t place) const { return place & position_mask; }
};

struct alignas(64) Bucket {
  static constexpr uint32_t kSlots = 12;
  uint8_t tags[kSlots];  // 0 = empty
  uint32_t overflowed;
  uint32_t places[kSlots];

  static uint8_t TagOf(uint64_t hash) {
    const uint8_t tag = static_cast<uint8_t>(hash);
    return tag == 0 ? 1 : tag;
  }

  // Bit i is set where tags[i] == tag.
  uint32_t MatchTag(uint8_t tag) const {
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
  // Bit i is set where the entry has all bits of the hash that it keeps.
  uint32_t Match(uint64_t hash, PlaceSplit split) const {
#if defined(__SSE2__)
    const __m128i kept = _mm_set1_epi32(static_cast<int>(~split.position_mask));
    const __m128i wanted = _mm_set1_epi32(static_cast<int>(split.MoreOf(hash)));
    uint32_t mask = 0;
    for (uint32_t i = 0; i < kSlots; i += 4) {
      const __m128i four = _mm_load_si128(reinterpret_cast<const __m128i*>(places + i));
      const __m128i equal = _mm_cmpeq_epi32(_mm_and_si128(four, kept), wanted);
      mask |= static_cast<uint32_t>(_mm_movemask_ps(_mm_castsi128_ps(equal))) << i;
    }
#else
    uint32_t mask = 0;
    for (uint32_t i = 0; i < kSlots; ++i) {
      mask |= static_cast<uint32_t>((places[i] & ~split.position_mask) == split.MoreOf(hash)) << i;
    }
#endif
    return mask & MatchTag(TagOf(hash));
  }
  // Of the first entry of a mask; of any entry where it is empty.
  uint32_t Place(uint32_t mask) const { return places[__builtin_ctz(mask | 1u << (kSlots - 1))]; }
};
static_assert(sizeof(Bucket) == 64);

class Index {
  static constexpr uint64_t kSegment = 512;  // buckets; an index of fewer has a segment of as many

  struct Buckets {
    std::unique_ptr<Bucket*[]> segments;
    uint64_t count = 0;
    Bucket& At(uint64_t bucket) const { return segments[bucket / kSegment][bucket % kSegment]; }
    // As far along the buckets as the 32 bits below the shard's are along their range. (Not below the stripe's: a
    // server that has every second shard would fill every second sixteenth of its buckets.)
    static uint64_t Home(uint64_t hash, uint64_t count) {
      return (hash >> (kShardShift - 32) & 0xffffffffu) * count >> 32;
    }
    uint64_t Home(uint64_t hash) const { return Home(hash, count); }
    uint64_t After(uint64_t bucket) const { return bucket + 1 == count ? 0 : bucket + 1; }
  };

 public:
  static constexpr uint32_t kNone = 0xffffffffu;

  // stripe: by which its sizes lie among those of the others. more_bits: of a hash, up to 8, that a place has above its
  // position, so that fewer keys are taken for others, and fewer positions are possible.
  Index(uint32_t stripe, uint32_t more_bits, std::atomic<uint64_t>* bytes_total)
      : stripe_(stripe), split_{UINT32_MAX >> more_bits}, bytes_total_(bytes_total) {}
  ~Index();
  Index(const Index&) = delete;
  Index& operator=(const Index&) = delete;

  // What a loop over many keys keeps in registers. Insertions leave it valid: they allocate and free nothing. An
  // entry that one of them moves over is missed by Guess, and found by Find.
  class View {
   public:
    explicit View(const Index& index)
        : current_(index.current_.count == 0 ? &Nothing() : &index.current_),
          old_(index.old_.count == 0 ? nullptr : &index.old_),
          segments_(current_->segments.get()),
          count_(current_->count),
          split_(index.split_) {}

    // The key's own bucket, which is fetched.
    const Bucket* Fetch(uint64_t hash) const {
      const uint64_t home = Buckets::Home(hash, count_);
      const Bucket* const bucket = segments_[home / kSegment] + home % kSegment;
      __builtin_prefetch(bucket, 0, 2);
      if (old_ != nullptr) [[unlikely]]
        __builtin_prefetch(&old_->At(old_->Home(hash)), 0, 2);
      return bucket;
    }

    // For each of so many keys the position where its row is likely to be, by the bits of its hash alone: of 1,000 the
    // rows of some 3 are elsewhere. kNone where no entry has these bits.
    // Each step is done for many keys before the next: their buckets come from memory side by side, and nothing
    // branches on what only a bucket tells, but for the few keys beyond their own bucket.
    void Guess(const uint64_t* hashes, uint32_t count, uint32_t* positions) const {
      for (uint32_t begin = 0; begin < count; begin += kTogether) {
        GuessSome(hashes + begin, std::min(kTogether, count - begin), positions + begin);
      }
    }

   private:
    static constexpr uint32_t kTogether = 512;
    static constexpr uint32_t kAhead = 96;  // buckets: of 32, 48, 64, 96 and 128 the fastest
    // Of the keys that lie beyond their own bucket 2 in 5 lie beyond the next one, 1 in 11 beyond the third, and hardly
    // any beyond these.
    static constexpr uint32_t kFurtherAhead = 3;
    static constexpr uint32_t kFurther = 12;

    [[gnu::always_inline]] void GuessSome(const uint64_t* hashes, uint32_t count, uint32_t* positions) const {
      const Bucket* buckets[kTogether];
      for (uint32_t i = 0; i < std::min(count, kAhead); ++i) buckets[i] = Fetch(hashes[i]);
      // Those for which not exactly one tag fits, or whose tag another key has.
      uint16_t left[kTogether];
      uint32_t left_count = 0;
      for (uint32_t i = 0; i < count; ++i) {
        if (i + kAhead < count) buckets[i + kAhead] = Fetch(hashes[i + kAhead]);
        const uint32_t mask = buckets[i]->MatchTag(Bucket::TagOf(hashes[i]));
        const uint32_t place = buckets[i]->Place(mask);
        positions[i] = split_.PositionOf(place);
        left[left_count] = static_cast<uint16_t>(i);
        const bool one = (mask ^ (mask - 1)) > mask - 1;
        const bool more = (place ^ split_.MoreOf(hashes[i])) <= split_.position_mask;
        left_count += one & more ? 0 : 1;
      }
      // Those of which nothing in their bucket has all bits.
      uint32_t beyond_count = 0;
      for (uint32_t k = 0; k < left_count; ++k) {
        const uint32_t i = left[k];
        const uint32_t mask = buckets[i]->Match(hashes[i], split_);
        positions[i] = split_.PositionOf(buckets[i]->Place(mask));
        left[beyond_count] = static_cast<uint16_t>(i);
        beyond_count += mask == 0 ? 1 : 0;
      }
      for (uint32_t k = 0; k < beyond_count; ++k) {
        if (buckets[left[k]]->overflowed != 0) FetchFurther(hashes[left[k]]);
      }
      for (uint32_t k = 0; k < beyond_count; ++k) positions[left[k]] = GuessFurther(hashes[left[k]]);
    }

    void FetchFurther(uint64_t hash) const {
      uint64_t b = current_->Home(hash);
      for (uint32_t more = kFurtherAhead; more > 0; --more) {
        b = current_->After(b);
        __builtin_prefetch(&current_->At(b), 0, 2);
      }
    }

    // Of a key that is not in its own bucket: the first position that fits, in the next ones or in the index that is
    // being left.
    uint32_t GuessFurther(uint64_t hash) const {
      uint64_t b = current_->Home(hash);
      for (uint32_t more = kFurther; more > 0 && current_->At(b).overflowed != 0; --more) {
        b = current_->After(b);
        if (const uint32_t mask = current_->At(b).Match(hash, split_)) {
          return split_.PositionOf(current_->At(b).Place(mask));
        }
      }
      if (old_ == nullptr) return kNone;
      const Bucket& old = old_->At(old_->Home(hash));
      const uint32_t mask = old.Match(hash, split_);
      return mask == 0 ? kNone : split_.PositionOf(old.Place(mask));
    }

    const Buckets* const current_;
    const Buckets* const old_;
    Bucket* const* const segments_;
    const uint64_t count_;
    const PlaceSplit split_;
  };

  // The position for which `is_row(position)` holds among those that fit; kNone where there is none.
  template <class IsRow>
  uint32_t Find(uint64_t hash, IsRow&& is_row) const {
    const uint32_t found = FindIn(current_, hash, is_row);
    return found != kNone || old_.count == 0 ? found : FindIn(old_, hash, is_row);
  }

  // Makes room for `extra` more entries: afterwards so many Inserts cannot fail.
  // For entries that move, `hash_at(position)` gives the hash of a row and `hash_at.Prefetch(position)` says that
  // it will be asked for.
  // Throws StatusError(ResourceExhausted), with nothing changed, when the system has no memory.
  template <class HashAt>
  void Reserve(uint64_t extra, HashAt&& hash_at) {
    Advance(0, hash_at);
    while (MustGrow(extra)) {
      if (growing()) {
        Advance(UINT64_MAX, hash_at);
      } else {
        Grow(size_ + extra);
      }
    }
  }
  // Whether Reserve(extra) would take memory that it need not take for fewer.
  bool MustGrow(uint64_t extra) const { return size_ + extra > Most(current_.count); }

  // REQUIRES: room made by Reserve, and the key is absent.
  template <class HashAt>
  void Insert(uint64_t hash, uint32_t position, HashAt&& hash_at) {
    InsertInto(current_, hash, position);
    ++size_;
    // Eight buckets an insertion: there are seldom two indexes in memory.
    if (growing()) MoveBuckets(8, hash_at);
  }

  // REQUIRES: present, at `position`.
  void Erase(uint64_t hash, uint32_t position);
  // The row of `hash` moved. REQUIRES: present, at `from`.
  void Reposition(uint64_t hash, uint32_t from, uint32_t to);

  // How many buckets lie between each entry's own and the one that it is in, summed; takes time by the buckets.
  uint64_t BucketsPassed() const;

  // So many there may be.
  uint64_t positions_max() const { return split_.position_mask; }
  uint64_t bytes() const { return (current_.count + old_.count) * sizeof(Bucket); }

  bool growing() const { return old_.count != 0; }
  // Moves up to `buckets` more over, so that a table that no longer grows is soon done with growing; and begins to
  // grow where the index is as full as it should be, before it is as full as it can be. Throws as Reserve does.
  template <class HashAt>
  void Advance(uint64_t buckets, HashAt&& hash_at) {
    if (growing()) {
      MoveBuckets(buckets, hash_at);
      FreeEmptied();
    } else if (size_ > Fitting(current_.count)) {
      Grow(size_);
    }
  }

  // Gives memory back that insertions have emptied.
  void FreeEmptied() {
    if (growing() && moved_ == old_.count) Free(old_);
  }

 private:
  // Of 12 slots a bucket, 10.5 on average: of the keys one in 20 lies beyond its own bucket.
  static uint64_t Fitting(uint64_t buckets) { return buckets * 21 / 2; }
  // And 11.25 at the most, so that what a call may add seldom has to be counted first.
  static uint64_t Most(uint64_t buckets) { return buckets * 45 / 4; }
  // A bucket without entries, for an index that has none yet.
  static const Buckets& Nothing();
  // The smallest of the stripe's sizes into which so many fit.
  uint64_t BucketsFor(uint64_t entries) const;

  template <class IsRow>
  uint32_t FindIn(const Buckets& side, uint64_t hash, IsRow& is_row) const {
    if (side.count == 0) return kNone;
    uint64_t b = side.Home(hash);
    // Of a few buckets every one may have overflowed: once around, and the key is not there.
    for (uint64_t left = side.count; left > 0; --left, b = side.After(b)) {
      const Bucket& bucket = side.At(b);
      for (uint32_t mask = bucket.Match(hash, split_); mask != 0; mask &= mask - 1) {
        const uint32_t position = split_.PositionOf(bucket.Place(mask));
        if (is_row(position)) return position;
      }
      if (bucket.overflowed == 0) break;
    }
    return kNone;
  }

  void InsertInto(Buckets& side, uint64_t hash, uint32_t position);
  // The slot that holds `position`, in whichever index has it.
  std::pair<Buckets*, uint64_t> Locate(uint64_t hash, uint32_t position, uint32_t* slot);
  static void EraseFrom(Buckets& side, uint64_t hash, uint64_t bucket, uint32_t slot);
  void Grow(uint64_t entries);
  static Buckets Allocate(uint64_t count);
  static void Release(Buckets& side);
  void Free(Buckets& side);

  // A bucket is fetched before its rows are, and those before it is moved: all three wait for memory.
  template <class HashAt>
  void MoveBuckets(uint64_t count, HashAt& hash_at) {
    for (; count > 0 && moved_ < old_.count; --count, ++moved_) {
      for (const uint64_t until = std::min(moved_ + kRowsAhead + 1, old_.count); fetched_ < until; ++fetched_) {
        if (fetched_ + kBucketsAhead < old_.count) __builtin_prefetch(&old_.At(fetched_ + kBucketsAhead), 1, 2);
        const Bucket& ahead = old_.At(fetched_);
        for (uint32_t slot = 0; slot < Bucket::kSlots; ++slot) {
          if (ahead.tags[slot] != 0) hash_at.Prefetch(split_.PositionOf(ahead.places[slot]));
        }
      }
      Bucket& bucket = old_.At(moved_);
      for (uint32_t slot = 0; slot < Bucket::kSlots; ++slot) {
        if (bucket.tags[slot] == 0) continue;
        const uint32_t position = split_.PositionOf(bucket.places[slot]);
        const uint64_t hash = hash_at(position);
        EraseFrom(old_, hash, moved_, slot);
        InsertInto(current_, hash, position);
      }
    }
  }
  static constexpr uint64_t kRowsAhead = 3;
  static constexpr uint64_t kBucketsAhead = 4;

  Buckets current_;
  Buckets old_;           // being emptied, bucket by bucket
  uint64_t moved_ = 0;    // buckets of old_ already emptied
  uint64_t fetched_ = 0;  // those whose rows are on their way
  uint64_t size_ = 0;
  const uint32_t stripe_;
  const PlaceSplit split_;
  std::atomic<uint64_t>* bytes_total_;
};

}  // namespace tablebay
