// Which pushes make a row of a key that has none: by count, exact or in a filter, or by chance.
//
// The filter is a counting Bloom filter with conservative update (Estan, Varghese 2002), in blocks (Putze, Sanders,
// Singler 2007): a key has five counters of 4 bits within one block of 512, and a push raises those of them that are
// the lowest, whose value is then the count. So a count is never too low. Blocks are rows of the table of sightings,
// under keys that lie in the shard whose keys they count: they are locked, cut, saved and moved with it, and exist only
// once something was counted in them.
#include <algorithm>
#include <cstring>

#include "tablebay/status.h"
#include "tablebay/table.h"

namespace tablebay {
namespace {

constexpr uint32_t kBlockCounters = kFilterDim * 16;
constexpr uint32_t kCountersOfAKey = 5;
constexpr uint32_t kCountersPerKey = 12;  // of the whole filter

uint64_t BlocksOfAShard(uint64_t keys) {
  const uint64_t a_block = uint64_t{kBlockCounters} * kShards / kCountersPerKey;
  return std::max<uint64_t>(1, (keys + a_block - 1) / a_block);
}

}  // namespace

bool Table::Admits(uint32_t stripe, uint64_t key, uint64_t hash, uint64_t step, Table* sightings) const {
  const TableOptions& options = checked_.options;
  if (checked_.push_missing == PushMissing::kDrop) return false;
  if (sightings != nullptr) {
    if (options.admit_filter_keys == 0) return sightings->Sight(stripe, key, hash, options.admit_at);
    return sightings->SightInFilter(stripe, hash, options.admit_at, BlocksOfAShard(options.admit_filter_keys));
  }
  const uint64_t drawn = HashKey(HashKey(key ^ initial_base_) + (step + 1) * 0x9e3779b97f4a7c15ULL);
  return static_cast<double>(drawn >> 11) < options.admit_probability * 0x1p53;
}

bool Table::Sight(uint32_t stripe_index, uint64_t key, uint64_t hash, uint32_t admit_at) {
  Stripe& stripe = all_->stripes[stripe_index];
  uint32_t position = Find(stripe, key, hash);
  if (position == Index::kNone) {
    const Added added(all_.get(), stripe);
    position = Insert(stripe, key, hash);
  } else if (stripe.cutting) {
    SaveImage(stripe, position);
  }
  char* const row = Row(stripe, position);
  int64_t seen;
  std::memcpy(&seen, row + layout().weights, sizeof seen);
  if (++seen >= admit_at) {
    Remove(stripe, position, key, hash);
    return true;
  }
  std::memcpy(row + layout().weights, &seen, sizeof seen);
  Touch(stripe, position, row);
  return false;
}

bool Table::SightInFilter(uint32_t stripe_index, uint64_t hash, uint32_t admit_at, uint64_t blocks) {
  Stripe& stripe = all_->stripes[stripe_index];
  const uint64_t drawn = HashKey(hash + 0x9e3779b97f4a7c15ULL);
  constexpr uint64_t kShardBits = ~uint64_t{0} << 54;
  const uint64_t block_hash = (hash & kShardBits) | (HashKey(drawn % blocks + 1) & ~kShardBits);
  const uint64_t block_key = KeyOfHash(block_hash);
  uint32_t position = Find(stripe, block_key, block_hash);
  if (position == Index::kNone) {
    const Added added(all_.get(), stripe);
    position = Insert(stripe, block_key, block_hash);
  } else if (stripe.cutting) {
    SaveImage(stripe, position);
  }
  char* const row = Row(stripe, position);
  auto* const counters = reinterpret_cast<unsigned char*>(row + layout().weights);
  uint64_t places = HashKey(drawn ^ 0xd1b54a32d192ed03ULL);
  uint32_t at[kCountersOfAKey];
  uint32_t lowest = kFilterCountMax;
  const auto count_at = [&](uint32_t place) { return counters[place / 2] >> place % 2 * 4 & 15u; };
  for (uint32_t& place : at) {
    place = static_cast<uint32_t>(places % kBlockCounters);
    places /= kBlockCounters;
    lowest = std::min(lowest, count_at(place));
  }
  const uint32_t seen = std::min(lowest + 1, kFilterCountMax);
  for (const uint32_t place : at) {
    if (count_at(place) >= seen) continue;
    unsigned char& both = counters[place / 2];
    const uint32_t shift = place % 2 * 4;
    both = static_cast<unsigned char>((both & ~(15u << shift)) | seen << shift);
  }
  Touch(stripe, position, row);
  return seen >= admit_at;
}

}  // namespace tablebay
