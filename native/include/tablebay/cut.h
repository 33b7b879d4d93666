// What a store held at one moment, read out as the files of a checkpoint while the store goes on.
//
// Thread safety: every method may be called from any thread; Read from one at a time for each file.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tablebay/blocks.h"
#include "tablebay/client_steps.h"

namespace tablebay {

class Store;
class Table;

// A client's steps as they were.
struct ClientImage {
  uint64_t high = 0;
  uint64_t low = 0;
  uint32_t incarnation = 0;
  uint32_t rank = kNoRank;
  StepWindow whole;
  std::vector<Cursor> cursors;                          // of steps in the window
  std::vector<std::pair<uint32_t, ShardSteps>> shards;  // those with any step
};

// The payload of a client's block, and back. ReadClient throws StatusError(CheckpointInvalid).
std::string WriteClient(const ClientImage& client);
ClientImage ReadClient(std::string_view payload);

class Cut {
 public:
  static constexpr size_t kBufferMin = kBlockHead + kPayloadMax;
  static constexpr std::optional<uint32_t> kSteps = std::nullopt;

  bool aligned() const { return aligned_; }
  bool full() const { return full_; }
  double pause_s() const { return pause_s_; }
  const std::vector<Table*>& tables() const { return tables_; }
  const std::vector<ClientImage>& clients() const { return clients_; }

  // Fills `out` with whole blocks of a table's file, or of the steps' (kSteps), the last of them the footer; how many
  // bytes: 0 once the footer was given. REQUIRES size >= kBufferMin.
  // Throws StatusError: CheckpointFailed once it was abandoned, BadRequest for a table that it has not.
  size_t Read(std::optional<uint32_t> table_id, char* out, size_t size);

  // It is in a complete checkpoint: the next may be a delta of it. Throws StatusError(CheckpointFailed) where it was
  // given up.
  void Commit();
  // It is not. What was in it is in the next, which is a full one.
  void Abandon();

  struct Figures {
    uint64_t rows;
    uint64_t deleted;
    uint32_t crc;  // of the footer's payload; 0 before it was given
    uint64_t bytes;
  };
  Figures FiguresOf(std::optional<uint32_t> table_id) const;

 private:
  friend class Store;
  struct File {
    Table* table = nullptr;
    uint32_t deleted_stripe = 0;
    std::vector<uint64_t> deleted;  // of the stripe before, not yet given
    uint32_t stripe = 0;
    size_t client = 0;
    BlockSums sums;
    bool ended = false;
    uint32_t footer_crc = 0;
    uint64_t bytes = 0;
  };
  explicit Cut(Store* store) : store_(store) {}
  size_t Next(File& file, char* out);
  size_t NextDeleted(File& file, char* out);
  size_t NextRows(File& file, char* out);
  void RequireActive() const;

  Store* const store_;
  bool aligned_ = false;
  bool full_ = false;
  double pause_s_ = 0;
  std::vector<Table*> tables_;
  std::vector<ClientImage> clients_;
  mutable std::mutex mutex_;  // over `files_`
  std::map<std::optional<uint32_t>, File> files_;
  std::atomic<bool> abandoned_{false};
};

}  // namespace tablebay
