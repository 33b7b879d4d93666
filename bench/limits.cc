// The limits that tables are held against: the same memory traffic without an index, an identity or a lock.
//
// Rows have the table's own size, stride and page size. Built as a shared library and called by bench/in_process.py.
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))

namespace {

constexpr uint64_t kHugePage = 2u << 20;
constexpr uint32_t kAhead = 32;  // the best of 16, 32, 64 on the machines of bench/README.md
constexpr uint64_t kLine = 64;
constexpr uint32_t kLinesAhead = 8;  // the CPU itself follows a row that is longer

using Float = float __attribute__((aligned(1), may_alias));

// Into the second-level cache, which is nearly twice as fast here as into the first.
[[gnu::always_inline]] inline void PrefetchLines(const char* row, uint32_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(row);
  const uintptr_t end = begin + (bytes < kLinesAhead * kLine ? bytes : kLinesAhead * kLine);
  for (uintptr_t line = begin & ~(kLine - 1); line < end; line += kLine) {
    __builtin_prefetch(reinterpret_cast<const char*>(line), 0, 2);
  }
}

template <uint32_t kBytes>
[[gnu::always_inline]] inline void GatherOf(const char* memory, const uint32_t* positions, uint64_t count,
                                            uint32_t stride, uint32_t offset, char* out) {
  for (uint64_t i = 0; i < count; ++i) {
    if (i + kAhead < count) PrefetchLines(memory + uint64_t{positions[i + kAhead]} * stride + offset, kBytes);
    __builtin_memcpy(out + i * kBytes, memory + uint64_t{positions[i]} * stride + offset, kBytes);
  }
}

template <uint32_t kDim>
[[gnu::always_inline]] inline void UpdateRow(char* row, const float* g, float learning_rate, float epsilon) {
  auto* const w = reinterpret_cast<Float*>(row);
  auto* const a = w + kDim;
#pragma GCC ivdep
  for (uint32_t d = 0; d < kDim; ++d) {
    const float sum = a[d] + g[d] * g[d];
    a[d] = sum;
    w[d] -= learning_rate * g[d] / (__builtin_sqrtf(sum) + epsilon);
  }
}

template <uint32_t kDim>
[[gnu::always_inline]] inline void AdagradOf(char* memory, const uint32_t* positions, uint64_t count, uint32_t stride,
                                             uint32_t offset, const float* gradients, float learning_rate,
                                             float epsilon) {
  for (uint64_t i = 0; i < count; ++i) {
    if (i + kAhead < count) PrefetchLines(memory + uint64_t{positions[i + kAhead]} * stride + offset, 8 * kDim);
    UpdateRow<kDim>(memory + uint64_t{positions[i]} * stride + offset, gradients + i * kDim, learning_rate, epsilon);
  }
}

// The same where a line of other memory has to come first, which says where the row is: that of an index at its best.
template <uint32_t kDim>
[[gnu::always_inline]] inline void AdagradFoundOf(char* memory, const uint32_t* lines, const uint32_t* places,
                                                  const uint32_t* positions, uint64_t count, uint32_t stride,
                                                  uint32_t offset, const float* gradients, float learning_rate,
                                                  float epsilon) {
  uint64_t found[kAhead];
  constexpr uint64_t kWords = kLine / sizeof(uint32_t);
  for (uint64_t i = 0; i < count + kAhead; ++i) {
    if (i >= kAhead) {
      const uint64_t r = i - kAhead;
      UpdateRow<kDim>(memory + found[r % kAhead] * stride + offset, gradients + r * kDim, learning_rate, epsilon);
    }
    if (i >= count) continue;
    if (i + 2 * kAhead < count) __builtin_prefetch(lines + places[i + 2 * kAhead] * kWords, 0, 2);
    // All lines say zero, which only memory knows.
    found[i % kAhead] = positions[i] + lines[places[i] * kWords];
    PrefetchLines(memory + found[i % kAhead] * stride + offset, 8 * kDim);
  }
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// Zeroed, in huge pages where the system has them.
char* limit_map(uint64_t bytes) {
  void* mapped = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  auto begin = (reinterpret_cast<uint64_t>(mapped) + kHugePage - 1) / kHugePage * kHugePage;
  madvise(reinterpret_cast<void*>(begin), bytes, MADV_HUGEPAGE);
  std::memset(reinterpret_cast<void*>(begin), 0, bytes);
  return reinterpret_cast<char*>(begin);
}

void limit_unmap(char* memory, uint64_t bytes) { munmap(memory, bytes); }

// The weights of each row, which lie at `offset`. dim: 8, 16, 64 or 128.
CLONES void limit_gather(const char* memory, const uint32_t* positions, uint64_t count, uint32_t stride,
                         uint32_t offset, uint32_t dim, char* out) {
  switch (dim) {
    case 8:
      return GatherOf<32>(memory, positions, count, stride, offset, out);
    case 16:
      return GatherOf<64>(memory, positions, count, stride, offset, out);
    case 64:
      return GatherOf<256>(memory, positions, count, stride, offset, out);
    case 128:
      return GatherOf<512>(memory, positions, count, stride, offset, out);
    default:
      __builtin_trap();
  }
}

// Adagrad over rows of as many weights as sums, read, changed and written.
CLONES void limit_adagrad(char* memory, const uint32_t* positions, uint64_t count, uint32_t stride, uint32_t offset,
                          uint32_t dim, const float* gradients, float learning_rate, float epsilon) {
  switch (dim) {
    case 8:
      return AdagradOf<8>(memory, positions, count, stride, offset, gradients, learning_rate, epsilon);
    case 16:
      return AdagradOf<16>(memory, positions, count, stride, offset, gradients, learning_rate, epsilon);
    case 64:
      return AdagradOf<64>(memory, positions, count, stride, offset, gradients, learning_rate, epsilon);
    case 128:
      return AdagradOf<128>(memory, positions, count, stride, offset, gradients, learning_rate, epsilon);
    default:
      __builtin_trap();
  }
}

// Lines of 64 bytes at `lines`, all zero; `places` has the number of each row's. dim: 16.
CLONES void limit_adagrad_found(char* memory, const uint32_t* lines, const uint32_t* places, const uint32_t* positions,
                                uint64_t count, uint32_t stride, uint32_t offset, const float* gradients,
                                float learning_rate, float epsilon) {
  AdagradFoundOf<16>(memory, lines, places, positions, count, stride, offset, gradients, learning_rate, epsilon);
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
