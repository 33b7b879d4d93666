#include "tablebay/recent_pulls.h"

#include <algorithm>
#include <utility>

#include "tablebay/hash.h"

namespace tablebay {
namespace {

constexpr uint32_t kKeysMin = 256;
constexpr uint64_t kKeysMax = uint64_t{4} << 20;  // of all pulls together: 16 MiB
constexpr uint32_t kKeysOfPullMax = kKeysMax / 4;
constexpr size_t kPullsMax = 1024;  // a push looks through all of them
constexpr size_t kFreeMax = 4;
constexpr uint32_t kCompared = 16;  // keys of a pull

}  // namespace

uint64_t RecentPulls::PrintOf(uint32_t table, const char* keys, uint32_t count) {
  uint64_t print = HashKey(uint64_t{table} << 32 | count);
  for (uint32_t i = 0; i < kCompared; ++i) {
    print = HashKey(print ^ LoadKey(keys, uint64_t{count - 1} * i / (kCompared - 1)));
  }
  return print;
}

std::unique_ptr<RecentPulls::Positions> RecentPulls::Begin(uint32_t count) {
  if (count < kKeysMin || count > kKeysOfPullMax) return nullptr;
  std::unique_ptr<Positions> positions;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!free_.empty()) {
      positions = std::move(free_.back());
      free_.pop_back();
    }
  }
  if (positions == nullptr) positions = std::make_unique<Positions>();
  positions->resize(count);
  return positions;
}

void RecentPulls::Keep(uint32_t table, const char* keys, std::unique_ptr<Positions> positions) {
  const auto count = static_cast<uint32_t>(positions->size());
  const uint64_t print = PrintOf(table, keys, count);
  const std::lock_guard<std::mutex> lock(mutex_);
  keys_ += count;
  kept_.push_back({print, std::move(positions)});
  while (keys_ > kKeysMax || kept_.size() > kPullsMax) {
    std::unique_ptr<Positions>& oldest = kept_.front().positions;
    keys_ -= oldest->size();
    if (free_.size() < kFreeMax) free_.push_back(std::move(oldest));
    kept_.pop_front();
  }
}

std::unique_ptr<RecentPulls::Positions> RecentPulls::Take(uint32_t table, const char* keys, uint32_t count) {
  if (count < kKeysMin || count > kKeysOfPullMax) return nullptr;
  const uint64_t print = PrintOf(table, keys, count);
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = std::find_if(kept_.rbegin(), kept_.rend(), [&](const Kept& one) {
    return one.print == print && one.positions->size() == count;
  });
  if (found == kept_.rend()) return nullptr;
  std::unique_ptr<Positions> positions = std::move(found->positions);
  kept_.erase(std::next(found).base());
  keys_ -= count;
  return positions;
}

void RecentPulls::GiveBack(std::unique_ptr<Positions> positions) {
  if (positions == nullptr) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (free_.size() < kFreeMax) free_.push_back(std::move(positions));
}

}  // namespace tablebay
