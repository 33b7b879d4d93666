#include "tablebay/huge_pages.h"

#include <sys/mman.h>

#include <cstring>
#include <map>
#include <mutex>
#include <vector>

namespace tablebay {
namespace {

// Blocks of one size.
class SizeClass {
 public:
  char* Take(uint64_t bytes) {
    char* block = nullptr;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (free_.empty() && !MapPage(bytes)) return nullptr;
      block = free_.back();
      free_.pop_back();
      ++pages_[PageOf(block)];
    }
    std::memset(block, 0, bytes);
    return block;
  }

  void GiveBack(char* block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(block);
    char* const page = PageOf(block);
    if (--pages_[page] > 0) return;
    std::erase_if(free_, [&](char* other) { return PageOf(other) == page; });
    pages_.erase(page);
    munmap(page, kHugePage);
  }

 private:
  static char* PageOf(char* block) {
    return reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(block) & ~uintptr_t{kHugePage - 1});
  }

  bool MapPage(uint64_t bytes) {
    char* page = MapAligned(kHugePage);
    if (page == nullptr) return false;
    madvise(page, kHugePage, MADV_HUGEPAGE);
    pages_[page] = 0;
    for (uint64_t at = kHugePage; at > 0; at -= bytes) free_.push_back(page + at - bytes);
    return true;
  }

  std::mutex mutex_;
  std::vector<char*> free_;
  std::map<char*, uint32_t> pages_;  // blocks in use of each
};

SizeClass& ClassOf(uint64_t bytes) {
  static auto* const classes = new SizeClass[64];  // never destroyed: tables may outlive static objects
  return classes[__builtin_ctzll(bytes)];
}

}  // namespace

char* MapAligned(uint64_t bytes) {
  const uint64_t padded = bytes + kHugePage;
  void* mapped = mmap(nullptr, padded, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  const auto begin = reinterpret_cast<uint64_t>(mapped);
  const uint64_t aligned = (begin + kHugePage - 1) / kHugePage * kHugePage;
  if (aligned > begin) munmap(mapped, aligned - begin);
  const uint64_t tail = begin + padded - (aligned + bytes);
  if (tail > 0) munmap(reinterpret_cast<void*>(aligned + bytes), tail);
  return reinterpret_cast<char*>(aligned);
}

char* TakeBlock(uint64_t bytes) {
  if (bytes < kHugePage) return ClassOf(bytes).Take(bytes);
  char* block = MapAligned(bytes);
  if (block != nullptr) madvise(block, bytes, MADV_HUGEPAGE);
  return block;
}

void GiveBlockBack(char* block, uint64_t bytes) {
  if (bytes < kHugePage) {
    ClassOf(bytes).GiveBack(block);
  } else {
    munmap(block, bytes);
  }
}

}  // namespace tablebay
