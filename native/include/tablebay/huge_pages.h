// Memory in huge pages, so that a large table has few TLB misses.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tablebay {

inline constexpr uint64_t kHugePage = 2u << 20;

// `bytes` of zeroed memory from the system that begin at a huge page's border; null when there are none.
char* MapAligned(uint64_t bytes);

// kHugePage bytes of it, mapped for one huge page.
char* TakeHugePage();
void GiveHugePageBack(char* page);

// Zeroed blocks of kBlockBytes, which share huge pages: being of one size, they leave no gaps there. Null when the
// system has no memory. Thread safety: any thread.
char* TakeBlock();
void GiveBlockBack(char* block);
inline constexpr uint64_t kBlockBytes = 32u << 10;

}  // namespace tablebay
