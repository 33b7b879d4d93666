// What a server knows of one client: which of its steps have been applied, by shard and whole.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "tablebay/hash.h"
#include "tablebay/window.h"

namespace tablebay {

inline constexpr uint32_t kNoRank = 0xffffffffu;

// Of one shard: which steps, and a fold of each one's content.
struct ShardSteps {
  StepWindow window;
  uint16_t content[StepWindow::kSteps];
};

// What the client sent along with a step, at most so much: all that a client has must fit in a block.
inline constexpr size_t kCursorBytes = 1024;
struct Cursor {
  uint64_t step = 0;
  std::string bytes;
};

struct ClientSteps {
  std::atomic<uint32_t> incarnation{0};
  std::atomic<uint64_t> durable_next{0};    // every step below it is in a committed checkpoint
  std::vector<ShardSteps> shards{kShards};  // each under its stripe's lock
  // All below: under `mutex`.
  std::mutex mutex;
  uint32_t rank = kNoRank;
  uint64_t begun = 0;  // the highest step of which a request has been let in, + 1
  uint64_t limit = 0;  // while steps are held up, those below it are not
  StepWindow whole;    // steps of which every request has been applied here
  // Of a step that is not whole: which of its requests have been applied, a bit for each.
  struct Pieces {
    uint64_t step = 0;
    uint64_t applied = 0;
  };
  std::array<Pieces, StepWindow::kSteps> pieces;
  std::array<Cursor, StepWindow::kSteps> cursors;
};

}  // namespace tablebay
