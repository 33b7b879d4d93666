#include "tablebay/index.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "tablebay/huge_pages.h"
#include "tablebay/status.h"

namespace tablebay {
namespace {

constexpr double kStep = 4.0 / 3;  // from one size to the next

}  // namespace

Index::~Index() {
  Free(current_);
  Free(old_);
}

const Index::Buckets& Index::Nothing() {
  static const Buckets* const nothing = [] {  // never destroyed: tables may outlive static objects
    static Bucket empty{};
    auto* const made = new Buckets;
    made->segments = std::make_unique<Bucket*[]>(1);
    made->segments[0] = &empty;
    made->count = 1;
    return made;
  }();
  return *nothing;
}

Index::Buckets Index::Allocate(uint64_t count) {
  Buckets made;
  made.segments = std::make_unique<Bucket*[]>((count + kSegment - 1) / kSegment);
  const uint64_t bytes = std::min(count, kSegment) * sizeof(Bucket);
  for (; made.count < count; made.count += std::min(count, kSegment)) {
    void* segment = nullptr;
    if (bytes == kBlockBytes) {
      segment = TakeBlock();
    } else if ((segment = std::aligned_alloc(alignof(Bucket), bytes)) != nullptr) {
      std::memset(segment, 0, bytes);
    }
    if (segment == nullptr) {
      Release(made);
      throw StatusError("ResourceExhausted", Format("the system has no %llu bytes for an index",
                                                    static_cast<unsigned long long>(count * sizeof(Bucket))));
    }
    made.segments[made.count / kSegment] = static_cast<Bucket*>(segment);
  }
  return made;
}

void Index::Release(Buckets& side) {
  for (uint64_t at = 0; at < side.count; at += kSegment) {
    Bucket* const segment = side.segments[at / kSegment];
    if (side.count < kSegment) {
      std::free(segment);
    } else {
      GiveBlockBack(reinterpret_cast<char*>(segment));
    }
  }
}

void Index::Free(Buckets& side) {
  Release(side);
  bytes_total_->fetch_sub(side.count * sizeof(Bucket), std::memory_order_relaxed);
  side = Buckets{};
}

uint64_t Index::BucketsFor(uint64_t entries) const {
  uint64_t count = 1;
  while (count < kSegment && Fitting(count) < entries) count *= 2;
  if (Fitting(count) >= entries) return count;
  double size = kSegment * std::pow(kStep, stripe_ * (1.0 / kStripes));
  for (;; size *= kStep) {
    count = (static_cast<uint64_t>(size) + kSegment - 1) / kSegment * kSegment;
    if (Fitting(count) >= entries) return count;
  }
}

void Index::Grow(uint64_t entries) {
  Buckets larger = Allocate(BucketsFor(std::max(entries, Fitting(current_.count) + 1)));
  bytes_total_->fetch_add(larger.count * sizeof(Bucket), std::memory_order_relaxed);
  if (size_ > 0) {
    old_ = std::move(current_);
    moved_ = 0;
    fetched_ = 0;
  } else {
    Free(current_);
  }
  current_ = std::move(larger);
}

void Index::InsertInto(Buckets& side, uint64_t hash, uint32_t position) {
  for (uint64_t b = side.Home(hash);; b = side.After(b)) {
    Bucket& bucket = side.At(b);
    const uint32_t empty = bucket.MatchTag(0);
    if (empty == 0) {
      ++bucket.overflowed;
      continue;
    }
    const int slot = __builtin_ctz(empty);
    bucket.tags[slot] = Bucket::TagOf(hash);
    bucket.places[slot] = split_.MoreOf(hash) | position;
    return;
  }
}

std::pair<Index::Buckets*, uint64_t> Index::Locate(uint64_t hash, uint32_t position, uint32_t* slot) {
  for (Buckets* side : {&current_, &old_}) {
    if (side->count == 0) continue;
    uint64_t b = side->Home(hash);
    for (uint64_t left = side->count; left > 0; --left, b = side->After(b)) {
      const Bucket& bucket = side->At(b);
      for (uint32_t mask = bucket.Match(hash, split_); mask != 0; mask &= mask - 1) {
        if (split_.PositionOf(bucket.Place(mask)) == position) {
          *slot = static_cast<uint32_t>(__builtin_ctz(mask));
          return {side, b};
        }
      }
      if (bucket.overflowed == 0) break;
    }
  }
  std::abort();  // an entry that the caller has just found is not there: memory is corrupt
}

void Index::EraseFrom(Buckets& side, uint64_t hash, uint64_t bucket, uint32_t slot) {
  side.At(bucket).tags[slot] = 0;
  for (uint64_t b = side.Home(hash); b != bucket; b = side.After(b)) --side.At(b).overflowed;
}

void Index::Erase(uint64_t hash, uint32_t position) {
  uint32_t slot;
  const auto [side, bucket] = Locate(hash, position, &slot);
  EraseFrom(*side, hash, bucket, slot);
  --size_;
}

uint64_t Index::BucketsPassed() const {
  uint64_t passed = 0;
  for (const Buckets* side : {&current_, &old_}) {
    for (uint64_t b = 0; b < side->count; ++b) passed += side->At(b).overflowed;
  }
  return passed;
}

void Index::Reposition(uint64_t hash, uint32_t from, uint32_t to) {
  uint32_t slot;
  const auto [side, bucket] = Locate(hash, from, &slot);
  side->At(bucket).places[slot] = split_.MoreOf(hash) | to;
}

}  // namespace tablebay
