// Memory in huge pages, so that a large table has few TLB misses.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tablebay {

inline constexpr uint64_t kHugePage = 2u << 20;

// `bytes` of zeroed memory from the system that begin at a huge page's border; null when there are none.
char* MapAligned(uint64_t bytes);

// Zeroed blocks of a power of two of bytes, of 64 KiB and more: those below a huge page share huge pages with others
// of their size. Null when the system has no memory. Thread safety: any thread.
char* TakeBlock(uint64_t bytes);
void GiveBlockBack(char* block, uint64_t bytes);
inline constexpr uint64_t kBlockBytesMin = 64u << 10;

}  // namespace tablebay
