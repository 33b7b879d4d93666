#include "tablebay/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "tablebay/huge_pages.h"
#include "tablebay/status.h"

namespace tablebay {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kSlabTarget = 64u << 10;

uint64_t RoundUp(uint64_t value, uint64_t unit) { return (value + unit - 1) / unit * unit; }

}  // namespace

Arena::Arena(uint32_t row_bytes, std::atomic<uint64_t>* bytes_total)
    : row_bytes_(row_bytes), rows_per_slab_log2_(0), bytes_total_(bytes_total) {
  while (rows_per_slab_log2_ < 10 && (uint64_t{row_bytes} << (rows_per_slab_log2_ + 1)) <= kSlabTarget) {
    ++rows_per_slab_log2_;
  }
  slab_bytes_ = RoundUp(uint64_t{row_bytes} << rows_per_slab_log2_, kPage);
  // As many huge pages as leave next to nothing beyond their last slab.
  constexpr uint64_t kPagesMax = 16;
  constexpr uint64_t kLoss = 2048;  // 1 / 2048 at most, where that can be
  chunk_bytes_ = RoundUp(slab_bytes_, kHugePage);
  for (uint64_t bytes = chunk_bytes_; bytes <= kPagesMax * kHugePage; bytes += kHugePage) {
    if (bytes % slab_bytes_ * chunk_bytes_ < chunk_bytes_ % slab_bytes_ * bytes) chunk_bytes_ = bytes;
    if (chunk_bytes_ % slab_bytes_ * kLoss <= chunk_bytes_) break;
  }
  slabs_per_chunk_ = static_cast<uint32_t>(chunk_bytes_ / slab_bytes_);
}

Arena::~Arena() {
  for (const auto& [base, chunk] : chunks_) munmap(base, chunk_bytes_);
  bytes_total_->fetch_sub(bytes_.load());
}

void Arena::MapChunk() {
  char* base = MapAligned(chunk_bytes_);
  if (base == nullptr) {
    throw StatusError("ResourceExhausted",
                      Format("the system has no %llu bytes for rows", static_cast<unsigned long long>(chunk_bytes_)));
  }
  madvise(base, chunk_bytes_, MADV_HUGEPAGE);
  if (chunks_.empty()) madvise(base, kHugePage, MADV_NOHUGEPAGE);
  chunks_[base] = Chunk{base};
  for (uint32_t i = slabs_per_chunk_; i-- > 0;) free_.push_back(base + i * slab_bytes_);
}

void Arena::Reserve(uint64_t slabs) {
  const std::lock_guard<std::mutex> lock(mutex_);
  while (free_.size() < reserved_ + slabs) MapChunk();
  reserved_ += slabs;
}

void Arena::Unreserve(uint64_t slabs) {
  const std::lock_guard<std::mutex> lock(mutex_);
  reserved_ -= slabs;
}

char* Arena::TakeSlab() {
  const std::lock_guard<std::mutex> lock(mutex_);
  --reserved_;
  char* slab = free_.back();
  free_.pop_back();
  ++std::prev(chunks_.upper_bound(slab))->second.live;
  bytes_.fetch_add(slab_bytes_, std::memory_order_relaxed);
  bytes_total_->fetch_add(slab_bytes_, std::memory_order_relaxed);
  return slab;
}

void Arena::GiveBack(char* slab) {
  const std::lock_guard<std::mutex> lock(mutex_);
  bytes_.fetch_sub(slab_bytes_, std::memory_order_relaxed);
  bytes_total_->fetch_sub(slab_bytes_, std::memory_order_relaxed);
  const auto chunk = std::prev(chunks_.upper_bound(slab));
  // A chunk whose slabs are set aside for somebody stays.
  if (--chunk->second.live > 0 || free_.size() + 1 < reserved_ + slabs_per_chunk_) {
    madvise(slab, slab_bytes_, MADV_DONTNEED);  // zeroed again when it is next touched
    free_.push_back(slab);
    return;
  }
  char* const begin = chunk->first;
  char* const end = begin + chunk_bytes_;
  std::erase_if(free_, [&](char* other) { return other >= begin && other < end; });
  munmap(begin, chunk_bytes_);
  chunks_.erase(chunk);
}

}  // namespace tablebay
