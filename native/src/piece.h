// What a call says of one table, as the store works on it.
#pragma once

#include <array>
#include <bitset>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tablebay/plan.h"
#include "tablebay/store.h"

namespace tablebay {

inline unsigned long long Wide(uint64_t value) { return value; }

// Of keys, rows and counts, as a message has it.
uint32_t ChecksumOf(const Part& part);

// One part of a request, with its table, in stripe order.
struct Store::Piece {
  Table* table = nullptr;
  Table* sightings = nullptr;   // of a push of gradients, where the table does not admit every key at once
  const Table* days = nullptr;  // where the table counts shows
  uint32_t flags = 0;
  uint32_t count = 0;
  bool push = false;
  uint32_t bytes_each = 0;  // of a pull: of a key's answer
  const char* keys = nullptr;
  const char* rows = nullptr;
  const char* counts = nullptr;
  std::vector<uint32_t> order;  // empty: the keys lie in stripe order as they are
  std::array<uint32_t, kStripes + 1> stripe_begin{};
  std::bitset<kShards> shards;
  // Where the request's bytes could not be used as they are.
  Plan merged;
  std::string own_rows;
  std::string own_counts;
  // Of a push after a pull.
  std::unique_ptr<RecentPulls::Positions> guesses;

  Run RunOf(uint32_t stripe) const {
    Run run{keys, order.empty() ? nullptr : order.data(), stripe_begin[stripe], stripe_begin[stripe + 1]};
    if (guesses != nullptr) run.guesses = guesses->data();
    return run;
  }
};

}  // namespace tablebay
