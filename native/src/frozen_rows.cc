#include "tablebay/frozen_rows.h"

#include <algorithm>
#include <cstring>

#include "tablebay/blocks.h"
#include "tablebay/crc32c.h"
#include "tablebay/hash.h"
#include "tablebay/narrow.h"
#include "tablebay/status.h"

namespace tablebay {
namespace {

constexpr size_t kAhead = 32;  // keys

uint64_t KeyOf(const char* row) {
  uint64_t key;
  std::memcpy(&key, row, sizeof key);
  return key;
}

}  // namespace

struct FrozenRows::HashAt {
  const FrozenRows& all;
  uint64_t operator()(uint32_t position) const { return HashKey(KeyOf(all.rows_[position])); }
  void Prefetch(uint32_t position) const { __builtin_prefetch(all.rows_[position]); }
};

FrozenRows::FrozenRows(const RowLayout& layout, ElementType type)
    : layout_(layout),
      type_(type),
      wire_bytes_(IsNarrow(type) ? 2 * layout.weight_bytes : layout.weight_bytes),
      elements_(layout.weight_bytes / (type == ElementType::kInt64 ? 8
                                       : IsNarrow(type)            ? 2
                                                                   : 4)) {
  if (layout.row_bytes < sizeof(uint64_t) || uint64_t{layout.weights} + layout.weight_bytes > layout.row_bytes) {
    throw StatusError("CheckpointInvalid", Format("a row of %u bytes with weights outside of it", layout.row_bytes));
  }
}

uint32_t FrozenRows::Find(uint64_t key, uint64_t hash) const {
  return index_.Find(hash, [&](uint32_t position) { return KeyOf(rows_[position]) == key; });
}

void FrozenRows::Add(std::string_view blocks, uint64_t start) {
  BlockSums sums;
  size_t at = 0;
  Block block;
  const auto refuse = [&](const char* what) {
    throw StatusError("CheckpointInvalid",
                      Format("at byte %llu: %s", static_cast<unsigned long long>(start + at), what));
  };
  for (;;) {
    if (!ReadBlock(blocks.substr(at), start + at, &block)) refuse("the file ends before its footer");
    if (block.kind == BlockKind::kFooter) break;
    if (block.kind == BlockKind::kRows) {
      if (uint64_t{block.count} * layout_.row_bytes != block.payload.size()) refuse("rows of another size");
      index_.Reserve(block.count, HashAt{*this});
      for (uint32_t i = 0; i < block.count; ++i) {
        const char* const row = block.payload.data() + uint64_t{i} * layout_.row_bytes;
        const uint64_t hash = HashKey(KeyOf(row));
        const uint32_t found = Find(KeyOf(row), hash);
        if (found != Index::kNone) {
          rows_[found] = row;
          continue;
        }
        if (rows_.size() >= index_.positions_max()) refuse("more rows than can be indexed");
        rows_.push_back(row);
        index_.Insert(hash, static_cast<uint32_t>(rows_.size() - 1), HashAt{*this});
        ++live_;
      }
      sums.rows += block.count;
    } else if (block.kind == BlockKind::kDeleted) {
      if (uint64_t{block.count} * sizeof(uint64_t) != block.payload.size()) refuse("deleted keys of another size");
      for (uint32_t i = 0; i < block.count; ++i) {
        const uint64_t key = LoadKey(block.payload.data(), i);
        const uint64_t hash = HashKey(key);
        const uint32_t found = Find(key, hash);
        if (found == Index::kNone) continue;
        index_.Erase(hash, found);
        rows_[found] = nullptr;
        --live_;
      }
      sums.deleted += block.count;
    } else {
      refuse("a block of another kind than rows");
    }
    ++sums.blocks;
    sums.crc = Crc32c(&block.crc, sizeof block.crc, sums.crc);
    at += block.size();
  }
  char wanted[kBlockHead + kFooterPayload];
  uint32_t crc;
  WriteFooter(wanted, sums, &crc);
  if (block.payload != std::string_view(wanted + kBlockHead, kFooterPayload)) refuse("a footer of other blocks");
  at += block.size();
  if (at != blocks.size()) refuse("bytes after the footer");
}

void FrozenRows::Read(std::string_view keys, char* out) const {
  const size_t count = keys.size() / sizeof(uint64_t);
  const Index::View index(index_);
  const uint64_t bytes = wire_bytes_;
  uint64_t hashes[kAhead];
  uint32_t guesses[kAhead];
  for (size_t begin = 0; begin < count; begin += kAhead) {
    const size_t n = std::min(kAhead, count - begin);
    for (size_t i = 0; i < n; ++i) hashes[i] = HashKey(LoadKey(keys.data(), begin + i));
    index.Guess(hashes, static_cast<uint32_t>(n), guesses);
    for (size_t i = 0; i < n; ++i) {
      if (guesses[i] != Index::kNone) __builtin_prefetch(rows_[guesses[i]]);
    }
    for (size_t i = 0; i < n; ++i) {
      const uint32_t found = Find(LoadKey(keys.data(), begin + i), hashes[i]);
      char* const to = out + (begin + i) * bytes;
      if (found == Index::kNone) {
        std::memset(to, 0, bytes);
      } else {
        CopyWeights(rows_[found], to);
      }
    }
  }
}

void FrozenRows::CopyWeights(const char* row, char* out) const {
  if (IsNarrow(type_)) return Widen(type_, row + layout_.weights, elements_, out);
  std::memcpy(out, row + layout_.weights, layout_.weight_bytes);
}

void FrozenRows::Contains(std::string_view keys, char* out) const {
  for (size_t i = 0; i < keys.size() / sizeof(uint64_t); ++i) {
    const uint64_t key = LoadKey(keys.data(), i);
    out[i] = Find(key, HashKey(key)) != Index::kNone ? 1 : 0;
  }
}

uint64_t FrozenRows::Scan(uint64_t position, uint32_t most, std::vector<uint64_t>* keys, std::string* weights) const {
  for (; position < rows_.size() && keys->size() < most; ++position) {
    const char* const row = rows_[position];
    if (row == nullptr) continue;
    keys->push_back(KeyOf(row));
    weights->resize(weights->size() + wire_bytes_);
    CopyWeights(row, weights->data() + weights->size() - wire_bytes_);
  }
  return position < rows_.size() ? position : 0;
}

}  // namespace tablebay
