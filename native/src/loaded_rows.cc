// Rows that a checkpoint has, as a table takes them in.
#include <algorithm>
#include <cstring>
#include <vector>

#include "tablebay/status.h"
#include "tablebay/table.h"

namespace tablebay {

void Table::ReserveRows(uint64_t rows) {
  for (Stripe& stripe : all_->stripes) {
    stripe.index.Reserve(rows / kStripes, HashAt{*this, stripe});
    stripe.dirty.reserve((stripe.rows + rows / kStripes + 63) / 64);
  }
}

uint64_t Table::Load(const char* rows, uint32_t count, const RowLayout& from, const std::bitset<kShards>& owned,
                     bool replace, bool weights_only, uint32_t now, std::mutex* stripe_locks) {
  constexpr uint32_t kAhead = 24;  // keys
  const RowLayout& at = layout();
  std::vector<uint64_t> keys;
  std::vector<uint64_t> hashes;
  std::vector<const char*> sources;
  keys.reserve(count);
  hashes.reserve(count);
  sources.reserve(count);
  for (uint32_t i = 0; i < count; ++i) {
    const char* const row = rows + uint64_t{i} * from.row_bytes;
    const uint64_t key = StoredKey(row);
    const uint64_t hash = HashKey(key);
    if (!owned[ShardOfHash(hash)]) continue;
    keys.push_back(key);
    hashes.push_back(hash);
    sources.push_back(row);
  }
  const auto n = static_cast<uint32_t>(keys.size());
  for (uint32_t begin = 0, end = 0; begin < n; begin = end) {
    const uint32_t stripe_index = StripeOfHash(hashes[begin]);
    while (end < n && StripeOfHash(hashes[end]) == stripe_index) ++end;
    const std::lock_guard<std::mutex> lock(stripe_locks[stripe_index]);
    Stripe& stripe = all_->stripes[stripe_index];
    const Added added(all_.get(), stripe);
    const Room room(this, stripe_index, Run{reinterpret_cast<const char*>(keys.data()), nullptr, begin, end});
    for (uint32_t i = begin; i < std::min(end, begin + kAhead); ++i) Index::View(stripe.index).Fetch(hashes[i]);
    for (uint32_t i = begin; i < end; ++i) {
      if (i + kAhead < end) Index::View(stripe.index).Fetch(hashes[i + kAhead]);
      const uint32_t found = Find(stripe, keys[i], hashes[i]);
      if (found != Index::kNone && !replace) {
        throw StatusError("CheckpointInvalid", Format("table '%s': key %llu is there twice", name().c_str(),
                                                      static_cast<unsigned long long>(keys[i])));
      }
      char* const row = found != Index::kNone ? Row(stripe, found) : Append(stripe, hashes[i], keys[i]);
      if (!weights_only) {
        std::memcpy(row, sources[i], at.row_bytes);
        uint32_t version;
        std::memcpy(&version, row + RowLayout::kVersion, sizeof version);
        stripe.version = std::max(stripe.version, version);
        if (update_.by_time) SetOwnSteps(row);
        if (evicts_) SeeLoaded(row, now);
        continue;
      }
      std::memcpy(row + RowLayout::kVersion, &stripe.version, sizeof stripe.version);
      if (at.step != 0) std::memset(row + at.step, 0, 4);
      std::memcpy(row + at.weights, sources[i] + from.weights, at.weight_bytes);
      if (at.slot_bytes != 0) std::memcpy(row + at.slots, initial_slots_.data(), at.slot_bytes);
      if (checked_.optimizer->agree != nullptr) Agree(row);
      if (!evicts_) continue;
      Forget(row);
      SeeLoaded(row, now);
    }
    stripe.BeginClean();
  }
  return n;
}

// A push without a client comes after all that the row has had.
void Table::SetOwnSteps(const char* row) {
  uint32_t last;
  std::memcpy(&last, row + layout().step, sizeof last);
  uint64_t steps = own_steps_.load(std::memory_order_relaxed);
  while (steps < last && !own_steps_.compare_exchange_weak(steps, last, std::memory_order_relaxed)) {
  }
}

void Table::SwapRows(Table& other) {
  std::swap(all_, other.all_);
  own_steps_.store(other.own_steps_.exchange(own_steps_.load()));
}

void Table::BeginDeltas() {
  for (Stripe& stripe : all_->stripes) stripe.deltas = true;
}

}  // namespace tablebay
