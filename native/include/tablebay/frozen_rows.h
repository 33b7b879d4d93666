// The rows of one table of a checkpoint, read where its files lie in memory, with an index over them.
//
// Thread safety: Add from one thread; the rest, once all has been added, from any.
#pragma once

#include <atomic>
#include <cstdint>
#include <string_view>
#include <vector>

#include "tablebay/index.h"
#include "tablebay/options.h"

namespace tablebay {

class FrozenRows {
 public:
  FrozenRows(const RowLayout& layout, ElementType type);
  FrozenRows(const FrozenRows&) = delete;
  FrozenRows& operator=(const FrozenRows&) = delete;

  // The blocks of a file, from its first block to its footer; the bytes must stay where they are. Files in the order
  // of their links: what a later one has takes the place of what was there. start: of the first block in the file.
  // Throws StatusError(CheckpointInvalid) naming the byte.
  void Add(std::string_view blocks, uint64_t start);

  uint64_t rows() const { return live_; }
  // Weights of each key to out, in order; zeros where there is no row. keys: little-endian u64.
  void Read(std::string_view keys, char* out) const;
  void Contains(std::string_view keys, char* out) const;
  // Up to `most` rows from `position`; the next position, 0 at the end.
  uint64_t Scan(uint64_t position, uint32_t most, std::vector<uint64_t>* keys, std::string* weights) const;

 private:
  struct HashAt;
  uint32_t Find(uint64_t key, uint64_t hash) const;
  void CopyWeights(const char* row, char* out) const;

  const RowLayout layout_;
  const ElementType type_;
  const uint32_t wire_bytes_;  // of a row that is read
  const uint32_t elements_;
  std::atomic<uint64_t> bytes_{0};
  Index index_{0, 0, &bytes_};     // all positions: it has a whole table's rows
  std::vector<const char*> rows_;  // null: deleted since
  uint64_t live_ = 0;
};

}  // namespace tablebay
