// Memory for the rows of one table: slabs of a power of two of rows, cut from chunks of whole huge pages.
//
// Chunks are mapped for huge pages but for the first 2 MiB, so that a large table has few TLB misses and a small one
// stays small. A slab given back returns its pages to the system at once; a chunk without slabs is unmapped.
// Thread safety: all methods may be called from any thread.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

namespace tablebay {

class Arena {
 public:
  // `bytes_total`: a counter of all arenas' mapped bytes, kept by the owner.
  Arena(uint32_t row_bytes, std::atomic<uint64_t>* bytes_total);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  uint32_t rows_per_slab_log2() const { return rows_per_slab_log2_; }
  uint32_t row_bytes() const { return row_bytes_; }
  uint64_t slab_bytes() const { return slab_bytes_; }

  // Sets `slabs` aside, so that as many TakeSlab cannot fail.
  // Throws StatusError(ResourceExhausted), with nothing set aside, when the system has no memory.
  void Reserve(uint64_t slabs);
  // Those set aside and not taken.
  void Unreserve(uint64_t slabs);
  // Zeroed memory. REQUIRES one set aside.
  char* TakeSlab();
  void GiveBack(char* slab);
  uint64_t bytes() const { return bytes_.load(std::memory_order_relaxed); }

 private:
  struct Chunk {
    char* base;
    uint32_t live = 0;
  };
  void MapChunk();

  const uint32_t row_bytes_;
  uint32_t rows_per_slab_log2_;
  uint64_t slab_bytes_;
  uint64_t chunk_bytes_;
  uint32_t slabs_per_chunk_;
  std::atomic<uint64_t> bytes_{0};
  std::atomic<uint64_t>* bytes_total_;
  std::mutex mutex_;
  std::vector<char*> free_;
  uint64_t reserved_ = 0;
  std::map<char*, Chunk> chunks_;  // by base address
};

}  // namespace tablebay
