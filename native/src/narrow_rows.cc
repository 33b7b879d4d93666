// What a table does otherwise where its rows keep weights of two bytes: rows are worked on as float32, in memory of the
// thread, and their weights rounded by chance when they are put back.
#include <algorithm>
#include <cstring>
#include <vector>

#include "tablebay/narrow.h"
#include "tablebay/table.h"

namespace tablebay {
namespace {

constexpr uint32_t kTogetherMax = 8;
constexpr uint32_t kTogetherFloats = 8192;
uint32_t Together(uint32_t dim) { return std::clamp(kTogetherFloats / dim, 1u, kTogetherMax); }

thread_local std::vector<char> wide_rows;

}  // namespace

void Table::ReserveWide() const {
  const size_t wanted = narrow() ? size_t{Together(dim())} * checked_.wide.row_bytes : 0;
  if (wide_rows.size() < wanted) wide_rows.resize(wanted);
}

void Table::Initialise(uint64_t key, char* weights) const {
  FillRows(&key, &weights, 1, 0);
  if (!narrow()) return;
  for (uint32_t d = 0; d < dim(); ++d) {
    char rounded[2];
    NarrowToNearest(checked_.element_type, weights + d * sizeof(float), 1, rounded);
    Widen(checked_.element_type, rounded, 1, weights + d * sizeof(float));
  }
}

void Table::InitialiseStored(uint64_t key, char* weights) const {
  if (!narrow()) return FillRows(&key, &weights, 1, 0);
  char* const wide = wide_rows.data();
  FillRows(&key, &wide, 1, 0);
  NarrowToNearest(checked_.element_type, wide_rows.data(), dim(), weights);
}

void Table::WidenInPlace(char* rows, uint64_t count) const {
  constexpr uint32_t kChunk = 64;
  const uint64_t numbers = count * dim();
  const char* const narrow = rows + numbers * sizeof(uint16_t);
  for (uint64_t first = 0; first < numbers; first += kChunk) {
    // What is written never reaches what is yet to be read, but for this chunk.
    char chunk[kChunk * sizeof(uint16_t)];
    const auto n = static_cast<uint32_t>(std::min<uint64_t>(kChunk, numbers - first));
    std::memcpy(chunk, narrow + first * sizeof(uint16_t), n * sizeof(uint16_t));
    Widen(checked_.element_type, chunk, n, rows + first * sizeof(float));
  }
}

void Table::AgreeNarrow(const Update& update, char* row) const {
  const RowLayout& at = layout();
  const RowLayout& wide = checked_.wide;
  Widen(checked_.element_type, row + at.weights, dim(), wide_rows.data() + wide.weights);
  std::memcpy(wide_rows.data() + wide.slots, row + at.slots, at.slot_bytes);
  checked_.optimizer->agree(update, wide_rows.data());
  std::memcpy(row + at.slots, wide_rows.data() + wide.slots, at.slot_bytes);
}

void Table::UpdateNarrow(UpdateKernel rule, const Update& update) const {
  const RowLayout& at = layout();
  const RowLayout& wide = checked_.wide;
  const uint32_t together = Together(dim());
  char* rows[kTogetherMax];
  for (uint32_t j = 0; j < together; ++j) rows[j] = wide_rows.data() + uint64_t{j} * wide.row_bytes;
  uint32_t first = 0;
  do {
    Update part = update;
    part.rows = rows;
    part.gradients = update.gradients + first;
    part.count = std::min(together, update.count - first);
    if (first > 0) part.ahead = Ahead{};
    for (uint32_t j = 0; j < part.count; ++j) {
      const char* const row = update.rows[first + j];
      Widen(checked_.element_type, row + at.weights, dim(), rows[j] + wide.weights);
      std::memcpy(rows[j] + wide.step, row + at.step, sizeof(uint32_t));
      std::memcpy(rows[j] + wide.slots, row + at.slots, at.slot_bytes);
    }
    if (Beside(update)) {
      UpdateBeside(rule, part);
    } else {
      rule(part);
    }
    for (uint32_t j = 0; j < part.count; ++j) {
      char* const row = update.rows[first + j];
      uint64_t key;
      std::memcpy(&key, row, sizeof key);
      uint32_t step;
      std::memcpy(&step, rows[j] + wide.step, sizeof step);
      if (!checked_.optimizer->counts_steps && step < UINT32_MAX) ++step;
      const uint64_t base = HashKey(HashKey(key ^ initial_base_) + (uint64_t{step} << 32 | 0x5ca1ab1eu));
      NarrowByChance(checked_.element_type, rows[j] + wide.weights, dim(), base, row + at.weights);
      std::memcpy(row + at.step, &step, sizeof step);
      std::memcpy(row + at.slots, rows[j] + wide.slots, at.slot_bytes);
    }
    first += part.count;
  } while (first < update.count);
}

}  // namespace tablebay
