#include "tablebay/blocks.h"

#include <cstring>

#include "tablebay/crc32c.h"
#include "tablebay/status.h"

namespace tablebay {
namespace {

void PutHead(char* block, BlockKind kind, uint32_t count, size_t payload_bytes, uint32_t* crc) {
  const uint32_t head[3] = {static_cast<uint32_t>(kind), count, static_cast<uint32_t>(payload_bytes)};
  std::memcpy(block, head, sizeof head);
  *crc = Crc32c(block + kBlockHead, payload_bytes, Crc32c(block, sizeof head));
  std::memcpy(block + sizeof head, crc, sizeof *crc);
}

}  // namespace

size_t SealBlock(char* block, BlockKind kind, uint32_t count, size_t payload_bytes, BlockSums* sums) {
  uint32_t crc;
  PutHead(block, kind, count, payload_bytes, &crc);
  if (kind == BlockKind::kRows) sums->rows += count;
  if (kind == BlockKind::kDeleted) sums->deleted += count;
  ++sums->blocks;
  sums->crc = Crc32c(&crc, sizeof crc, sums->crc);
  return kBlockHead + payload_bytes;
}

size_t WriteFooter(char* block, const BlockSums& sums, uint32_t* footer_crc) {
  char* const payload = block + kBlockHead;
  const uint64_t counts[3] = {sums.rows, sums.deleted, sums.blocks};
  const uint32_t rest[2] = {sums.crc, 0};
  std::memcpy(payload, counts, sizeof counts);
  std::memcpy(payload + sizeof counts, rest, sizeof rest);
  uint32_t crc;
  PutHead(block, BlockKind::kFooter, 0, kFooterPayload, &crc);
  *footer_crc = Crc32c(payload, kFooterPayload);
  return kBlockHead + kFooterPayload;
}

bool ReadHead(std::string_view bytes, Block* block) {
  if (bytes.size() < kBlockHead) return false;
  uint32_t head[4];
  std::memcpy(head, bytes.data(), sizeof head);
  if (head[2] > kPayloadMax || bytes.size() - kBlockHead < head[2]) return false;
  block->kind = static_cast<BlockKind>(head[0]);
  block->count = head[1];
  block->payload = bytes.substr(kBlockHead, head[2]);
  block->crc = head[3];
  return true;
}

bool ReadBlock(std::string_view bytes, uint64_t place, Block* block) {
  if (bytes.size() < kBlockHead) return false;
  uint32_t head[4];
  std::memcpy(head, bytes.data(), sizeof head);
  const auto at = static_cast<unsigned long long>(place);
  if (head[2] > kPayloadMax) {
    throw StatusError("CheckpointInvalid",
                      Format("at byte %llu: a block of %u bytes, wanted at most %zu", at, head[2], kPayloadMax));
  }
  if (bytes.size() - kBlockHead < head[2]) return false;
  block->kind = static_cast<BlockKind>(head[0]);
  block->count = head[1];
  block->payload = bytes.substr(kBlockHead, head[2]);
  block->crc = head[3];
  const uint32_t crc = Crc32c(block->payload.data(), block->payload.size(), Crc32c(bytes.data(), 3 * sizeof(uint32_t)));
  if (crc != block->crc) {
    throw StatusError("CheckpointInvalid",
                      Format("at byte %llu: the block's CRC-32C is %08x, and it says %08x", at, crc, block->crc));
  }
  return true;
}

}  // namespace tablebay
