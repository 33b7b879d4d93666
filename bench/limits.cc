// The limits that tables are held against: the same memory traffic without an index, an identity or a lock.
//
// Rows have the table's own size, stride and page size. Built as a shared library and called by bench/table.py.
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))

namespace {

constexpr uint64_t kHugePage = 2u << 20;
constexpr uint32_t kAhead = 32;  // the best of 16, 32, 64 on the machine of bench/README.md

using Float = float __attribute__((aligned(1), may_alias));

// Into the second-level cache, which is nearly twice as fast here as into the first.
inline void PrefetchLines(const char* row, uint32_t bytes) {
  for (uint32_t offset = 0; offset < bytes; offset += 64) __builtin_prefetch(row + offset, 1, 2);
  __builtin_prefetch(row + bytes - 1, 1, 2);
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// Zeroed, in huge pages where the system has them.
char* limit_map(uint64_t bytes) {
  const uint64_t padded = (bytes + 2 * kHugePage - 1) / kHugePage * kHugePage;
  void* mapped = mmap(nullptr, padded, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  auto begin = (reinterpret_cast<uint64_t>(mapped) + kHugePage - 1) / kHugePage * kHugePage;
  madvise(reinterpret_cast<void*>(begin), bytes, MADV_HUGEPAGE);
  std::memset(reinterpret_cast<void*>(begin), 0, bytes);
  return reinterpret_cast<char*>(begin);
}

// 64 bytes of each row, at `offset`.
CLONES void limit_gather64(const char* memory, const uint32_t* positions, uint64_t count, uint32_t stride,
                           uint32_t offset, char* out) {
  for (uint64_t i = 0; i < count; ++i) {
    if (i + kAhead < count) {
      const char* next = memory + uint64_t{positions[i + kAhead]} * stride + offset;
      __builtin_prefetch(next, 0, 2);
      __builtin_prefetch(next + 63, 0, 2);
    }
    __builtin_memcpy(out + i * 64, memory + uint64_t{positions[i]} * stride + offset, 64);
  }
}

// Adagrad over rows of 16 weights and 16 sums, read, changed and written.
CLONES void limit_adagrad16(char* memory, const uint32_t* positions, uint64_t count, uint32_t stride, uint32_t offset,
                            const float* gradients, float learning_rate, float epsilon) {
  for (uint64_t i = 0; i < count; ++i) {
    if (i + kAhead < count) PrefetchLines(memory + uint64_t{positions[i + kAhead]} * stride + offset, 128);
    auto* __restrict w = reinterpret_cast<Float*>(memory + uint64_t{positions[i]} * stride + offset);
    auto* __restrict a = w + 16;
    const float* __restrict g = gradients + i * 16;
    for (int d = 0; d < 16; ++d) {
      const float sum = a[d] + g[d] * g[d];
      a[d] = sum;
      w[d] -= learning_rate * g[d] / (__builtin_sqrtf(sum) + epsilon);
    }
  }
}

// tb_pull of one key, over and over: what a call from C costs.
int limit_calls(int (*pull)(void*, const uint64_t*, size_t, void*, int), void* table, const uint64_t* key, float* row,
                uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) {
    if (pull(table, key, 1, row, 1) != 0) return -1;
  }
  return 0;
}

}  // extern "C"
#pragma GCC visibility pop
