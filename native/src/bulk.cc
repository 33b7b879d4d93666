#include "tablebay/bulk.h"

#include <atomic>
#include <vector>

#include "tablebay/crc32c.h"
#include "tablebay/crew.h"
#include "tablebay/kernels.h"

namespace tablebay {

uint32_t BulkCrc32c(const char* bytes, size_t size, uint32_t initial) {
  // In units of what a key's row may take, so that a large call's is large.
  constexpr size_t kUnit = 64;
  const size_t units = size / kUnit;
  if (units < Crew::kKeysLarge) return Crc32c(bytes, size, initial);
  const Crew::Ranges ranges = Crew::RangesOf(units);
  std::vector<uint32_t> crcs(ranges.count);
  const size_t each = ranges.each * kUnit;
  // The last has what is less than a unit as well.
  const auto size_of = [&](size_t number) { return number + 1 == ranges.count ? size - number * each : each; };
  Crew::OfProcess().ShareRanges(units, [&](size_t begin, size_t) {
    const size_t number = begin / ranges.each;
    crcs[number] = Crc32c(bytes + number * each, size_of(number));
  });
  for (size_t i = 0; i < crcs.size(); ++i) initial = Crc32cOfBoth(initial, crcs[i], size_of(i));
  return initial;
}

size_t BulkFirstNonFinite(const char* rows, size_t count, uint32_t dim) {
  std::atomic<size_t> first{count};
  const auto kernel = ActiveKernels().first_nonfinite;
  Crew::OfProcess().ShareRanges(count, [&](size_t begin, size_t end) {
    if (begin >= first.load(std::memory_order_relaxed)) return;
    const size_t found = begin + kernel(rows + begin * dim * sizeof(float), end - begin, dim);
    if (found == end) return;
    size_t known = first.load(std::memory_order_relaxed);
    while (found < known && !first.compare_exchange_weak(known, found, std::memory_order_relaxed)) {
    }
  });
  return first.load(std::memory_order_relaxed);
}

void BulkGather(const char* base, const uint32_t* index, size_t count, uint32_t row_bytes, char* out) {
  const auto kernel = ActiveKernels().gather;
  Crew::OfProcess().ShareRanges(count, [&](size_t begin, size_t end) {
    kernel(base, index + begin, end - begin, row_bytes, out + begin * row_bytes);
  });
}

void BulkGatherPointers(const char* const* rows, const uint32_t* index, size_t count, uint32_t row_bytes, char* out) {
  const auto kernel = ActiveKernels().gather_pointers;
  Crew::OfProcess().ShareRanges(count, [&](size_t begin, size_t end) {
    kernel(rows, index + begin, end - begin, row_bytes, out + begin * row_bytes);
  });
}

}  // namespace tablebay
