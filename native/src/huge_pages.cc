#include "tablebay/huge_pages.h"

#include <sys/mman.h>

#include <cstring>
#include <map>
#include <mutex>
#include <vector>

namespace tablebay {
namespace {

class Blocks {
 public:
  char* Take() {
    char* block = nullptr;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (free_.empty() && !MapPage()) return nullptr;
      block = free_.back();
      free_.pop_back();
      ++pages_[PageOf(block)];
    }
    std::memset(block, 0, kBlockBytes);
    return block;
  }

  void GiveBack(char* block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(block);
    char* const page = PageOf(block);
    if (--pages_[page] > 0) return;
    std::erase_if(free_, [&](char* other) { return PageOf(other) == page; });
    pages_.erase(page);
    GiveHugePageBack(page);
  }

 private:
  static char* PageOf(char* block) {
    return reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(block) & ~uintptr_t{kHugePage - 1});
  }

  bool MapPage() {
    char* page = TakeHugePage();
    if (page == nullptr) return false;
    pages_[page] = 0;
    for (uint64_t at = kHugePage; at > 0; at -= kBlockBytes) free_.push_back(page + at - kBlockBytes);
    return true;
  }

  std::mutex mutex_;
  std::vector<char*> free_;
  std::map<char*, uint32_t> pages_;  // blocks in use of each
};

Blocks& AllBlocks() {
  static auto* const blocks = new Blocks;  // never destroyed: tables may outlive static objects
  return *blocks;
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

char* TakeHugePage() {
  char* const page = MapAligned(kHugePage);
  if (page != nullptr) madvise(page, kHugePage, MADV_HUGEPAGE);
  return page;
}

void GiveHugePageBack(char* page) { munmap(page, kHugePage); }

char* TakeBlock() { return AllBlocks().Take(); }

void GiveBlockBack(char* block) { AllBlocks().GiveBack(block); }

}  // namespace tablebay
