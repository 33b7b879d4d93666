#include "tablebay/index.h"

#include <cstdlib>
#include <cstring>

#include "tablebay/huge_pages.h"
#include "tablebay/status.h"

namespace tablebay {
namespace {

Bucket* Allocate(uint64_t bytes) {
  if (bytes >= kBlockBytesMin) return reinterpret_cast<Bucket*>(TakeBlock(bytes));
  void* memory = std::aligned_alloc(alignof(Bucket), bytes);
  if (memory != nullptr) std::memset(memory, 0, bytes);
  return static_cast<Bucket*>(memory);
}

}  // namespace

Index::~Index() {
  Free(current_);
  Free(old_);
}

void Index::Free(Buckets& side) {
  if (side.buckets == nullptr) return;
  const uint64_t bytes = side.Count() * sizeof(Bucket);
  if (bytes >= kBlockBytesMin) {
    GiveBlockBack(reinterpret_cast<char*>(side.buckets), bytes);
  } else {
    std::free(side.buckets);
  }
  bytes_total_->fetch_sub(bytes, std::memory_order_relaxed);
  side = Buckets{};
}

uint64_t Index::BucketsFor(uint64_t entries) {
  uint64_t count = 1;
  while (count * Bucket::kSlots * 4 / 5 < entries) count *= 2;
  return count;
}

void Index::Grow(uint64_t entries) {
  const uint64_t count = BucketsFor(entries);
  const uint64_t bytes = count * sizeof(Bucket);
  Bucket* buckets = Allocate(bytes);
  if (buckets == nullptr) {
    throw StatusError("ResourceExhausted",
                      Format("the system has no %llu bytes for an index", static_cast<unsigned long long>(bytes)));
  }
  bytes_total_->fetch_add(bytes, std::memory_order_relaxed);
  if (size_ > 0) {
    old_ = current_;
    moved_ = 0;
  } else {
    Free(current_);
  }
  current_ = Buckets{buckets, count - 1, kStripeShift - static_cast<uint32_t>(__builtin_ctzll(count))};
}

void Index::InsertInto(Buckets& side, uint64_t hash, uint32_t position) {
  for (uint64_t b = side.Home(hash);; b = (b + 1) & side.mask) {
    Bucket& bucket = side.buckets[b];
    const uint32_t empty = bucket.Match(0);
    if (empty == 0) {
      ++bucket.overflowed;
      continue;
    }
    const int slot = __builtin_ctz(empty);
    bucket.tags[slot] = TagOf(hash);
    bucket.positions[slot] = position;
    return;
  }
}

std::pair<Index::Buckets*, uint64_t> Index::Locate(uint64_t hash, uint32_t position, uint32_t* slot) {
  const uint8_t tag = TagOf(hash);
  for (Buckets* side : {&current_, &old_}) {
    if (side->buckets == nullptr) continue;
    for (uint64_t b = side->Home(hash);; b = (b + 1) & side->mask) {
      const Bucket& bucket = side->buckets[b];
      for (uint32_t mask = bucket.Match(tag); mask != 0; mask &= mask - 1) {
        const auto i = static_cast<uint32_t>(__builtin_ctz(mask));
        if (bucket.positions[i] == position) {
          *slot = i;
          return {side, b};
        }
      }
      if (bucket.overflowed == 0) break;
    }
  }
  std::abort();  // an entry that the caller has just found is not there: memory is corrupt
}

void Index::EraseFrom(Buckets& side, uint64_t hash, uint64_t bucket, uint32_t slot) {
  side.buckets[bucket].tags[slot] = 0;
  for (uint64_t b = side.Home(hash); b != bucket; b = (b + 1) & side.mask) --side.buckets[b].overflowed;
}

void Index::Erase(uint64_t hash, uint32_t position) {
  uint32_t slot;
  const auto [side, bucket] = Locate(hash, position, &slot);
  EraseFrom(*side, hash, bucket, slot);
  --size_;
}

void Index::Reposition(uint64_t hash, uint32_t from, uint32_t to) {
  uint32_t slot;
  const auto [side, bucket] = Locate(hash, from, &slot);
  side->buckets[bucket].positions[slot] = to;
}

}  // namespace tablebay
