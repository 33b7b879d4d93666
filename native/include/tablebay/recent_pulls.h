// Where pulls found their rows, for the pushes that follow them.
//
// A training step pulls keys and then pushes to the same ones. The push begins where the pull has found each row, and
// need not look it up in the index again: that is about a quarter of what it does. Rows move when others are removed,
// so a position is a guess, which the key in the row itself confirms.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

namespace tablebay {

// Thread-safe.
class RecentPulls {
 public:
  // By the index of the key among the pull's; any number where it has no row.
  using Positions = std::vector<uint32_t>;

  // Room for a pull of so many keys; null for one that is not worth it.
  std::unique_ptr<Positions> Begin(uint32_t count);
  // keys: as many u64 as there are positions.
  void Keep(uint32_t table, const char* keys, std::unique_ptr<Positions> positions);
  // Of the last pull of these keys in this order, if it is kept, which it is then no more; else null. Most keys are
  // not compared.
  std::unique_ptr<Positions> Take(uint32_t table, const char* keys, uint32_t count);
  // What Take gave, for pulls to come.
  void GiveBack(std::unique_ptr<Positions> positions);

 private:
  struct Kept {
    uint64_t print;
    std::unique_ptr<Positions> positions;
  };
  static uint64_t PrintOf(uint32_t table, const char* keys, uint32_t count);

  std::mutex mutex_;
  std::deque<Kept> kept_;  // the oldest first
  uint64_t keys_ = 0;      // of all that is kept
  std::vector<std::unique_ptr<Positions>> free_;
};

}  // namespace tablebay
