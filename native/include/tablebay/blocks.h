// The blocks of a checkpoint's files (docs/checkpoint-format.md): made in place, and read without trust.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace tablebay {

enum class BlockKind : uint32_t { kRows = 1, kDeleted = 2, kClient = 3, kFooter = 255 };

inline constexpr size_t kBlockHead = 16;
inline constexpr size_t kPayloadMax = size_t{1} << 20;
inline constexpr size_t kFooterPayload = 32;

// What a footer says of the blocks before it.
struct BlockSums {
  uint64_t rows = 0;
  uint64_t deleted = 0;
  uint64_t blocks = 0;
  uint32_t crc = 0;  // over the blocks' own
};

// Makes a block of the payload that lies at block + kBlockHead; its size.
size_t SealBlock(char* block, BlockKind kind, uint32_t count, size_t payload_bytes, BlockSums* sums);
// Writes the footer; its size. footer_crc: of its payload.
size_t WriteFooter(char* block, const BlockSums& sums, uint32_t* footer_crc);

struct Block {
  BlockKind kind;
  uint32_t count;
  std::string_view payload;
  uint32_t crc;
  size_t size() const { return kBlockHead + payload.size(); }
};

// The first block of `bytes` as its head says, unchecked; false where they end within it, or it is longer than any.
bool ReadHead(std::string_view bytes, Block* block);

// The first block of `bytes`; false where they end within it. `place`: the block's offset in its file, for errors.
// Throws StatusError(CheckpointInvalid) for what no writer makes.
bool ReadBlock(std::string_view bytes, uint64_t place, Block* block);

}  // namespace tablebay
