// Rows that leave by themselves. What is asked of a row lies behind its slots (RowLayout), in tables that ask alone.
//
// A sweep goes through a stripe's rows from the last to the first, a slice under its lock at a time: a row that leaves
// is replaced by the last one, which has been looked at, and rows made meanwhile come behind. So a row that is there
// throughout is looked at, and one that is pushed to between two slices is judged as it is then.
#include "tablebay/eviction.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <thread>

#include "tablebay/narrow.h"
#include "tablebay/status.h"
#include "tablebay/store.h"
#include "tablebay/table.h"

namespace tablebay {
namespace {

constexpr double kSecondsMax = 0x1p31;
constexpr double kCountMax = 0x1p31;

uint32_t LoadU32(const char* at) {
  uint32_t value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

void StoreU32(char* at, uint32_t value) { std::memcpy(at, &value, sizeof value); }

// A clock that was put back makes nothing old.
uint32_t Since(uint32_t then, uint32_t now) { return now > then ? now - then : 0; }

}  // namespace

EvictionRules CheckEviction(const TableOptions& options, ElementType type) {
  EvictionRules rules;
  const char* const name = options.name.c_str();
  const auto whole = [&](const std::string& key, double value, double most) {
    if (!(value >= 0 && value <= most && value == std::floor(value))) {
      throw StatusError("BadRequest", Format("table '%s': eviction: %s is %g, wanted a whole number from 0 to %.0f",
                                             name, key.c_str(), value, most));
    }
    return static_cast<uint32_t>(value);
  };
  for (const auto& [key, value] : options.eviction) {
    if (key == "ttl_seconds") {
      rules.ttl_seconds = whole(key, value, kSecondsMax);
    } else if (key == "min_count") {
      rules.min_count = whole(key, value, kCountMax);
    } else if (key == "grace_seconds") {
      rules.grace_seconds = whole(key, value, kSecondsMax);
    } else if (key == "min_norm") {
      if (!(value >= 0 && value <= 1e30)) {
        throw StatusError("BadRequest", Format("table '%s': eviction: min_norm is %g, wanted 0 to 1e30", name, value));
      }
      rules.min_norm = value;
    } else {
      throw StatusError("BadRequest", Format("table '%s': eviction has no parameter '%s'; wanted ttl_seconds, "
                                             "min_count, min_norm and grace_seconds",
                                             name, key.c_str()));
    }
  }
  if (options.eviction.empty()) return rules;
  if (!rules.active()) {
    throw StatusError("BadRequest",
                      Format("table '%s': eviction says nothing; wanted ttl_seconds, min_count or min_norm", name));
  }
  const bool waits = rules.min_count > 0 || rules.min_norm > 0;
  if (waits != (rules.grace_seconds > 0)) {
    throw StatusError("BadRequest",
                      Format("table '%s': eviction: grace_seconds is %u, wanted more than 0 with min_count or "
                             "min_norm, and 0 without",
                             name, rules.grace_seconds));
  }
  if (rules.min_norm > 0 && type == ElementType::kInt64) {
    throw StatusError("BadRequest",
                      Format("table '%s': eviction: min_norm is %g and dtype int64; wanted it of weights alone", name,
                             rules.min_norm));
  }
  return rules;
}

void Table::See(char* row, uint32_t now, uint32_t pushes) const {
  const RowLayout& at = layout();
  if (at.seen != 0) StoreU32(row + at.seen, now);
  if (at.born != 0 && LoadU32(row + at.born) == 0) StoreU32(row + at.born, now);
  if (at.pushes == 0) return;
  const uint32_t before = LoadU32(row + at.pushes);
  if (before < UINT32_MAX) StoreU32(row + at.pushes, before + pushes);
}

void Table::Forget(char* row) const {
  const RowLayout& at = layout();
  for (const uint32_t place : {at.seen, at.born, at.pushes}) {
    if (place != 0) StoreU32(row + place, 0);
  }
}

// A row that was loaded without its times was seen when it was loaded.
void Table::SeeLoaded(char* row, uint32_t now) const {
  const RowLayout& at = layout();
  for (const uint32_t place : {at.seen, at.born}) {
    if (place != 0 && LoadU32(row + place) == 0) StoreU32(row + place, now);
  }
}

bool Table::Leaves(const char* row, uint32_t now, Reason* reason) const {
  const EvictionRules& rules = checked_.eviction;
  const RowLayout& at = layout();
  if (rules.ttl_seconds > 0 && Since(LoadU32(row + at.seen), now) >= rules.ttl_seconds) {
    *reason = Reason::kTtl;
    return true;
  }
  if (rules.grace_seconds == 0 || Since(LoadU32(row + at.born), now) < rules.grace_seconds) return false;
  if (rules.min_count > 0 && LoadU32(row + at.pushes) < rules.min_count) {
    *reason = Reason::kCount;
    return true;
  }
  if (rules.min_norm > 0 && Norm(row) < rules.min_norm) {
    *reason = Reason::kNorm;
    return true;
  }
  return false;
}

// Summed in the order of the columns, in float64.
double Table::Norm(const char* row) const {
  thread_local std::vector<float> weights;
  weights.resize(dim());
  if (narrow()) {
    Widen(checked_.element_type, row + layout().weights, dim(), reinterpret_cast<char*>(weights.data()));
  } else {
    std::memcpy(weights.data(), row + layout().weights, layout().weight_bytes);
  }
  double sum = 0;
  for (const float weight : weights) sum += double{weight} * double{weight};
  return std::sqrt(sum);
}

Slice Table::Evict(uint32_t stripe_index, uint32_t* left, uint32_t now) {
  Stripe& stripe = all_->stripes[stripe_index];
  *left = std::min(*left, stripe.rows);
  Slice slice;
  ++stripe.version;
  for (; *left > 0 && slice.looked_at < kSliceRows; ++slice.looked_at) {
    const uint32_t position = --*left;
    const char* const row = Row(stripe, position);
    Reason reason;
    if (!Leaves(row, now, &reason)) continue;
    const uint64_t key = KeyAt(stripe_index, position);
    Remove(stripe, position, key, HashKey(key));
    evicted_[static_cast<size_t>(reason)].fetch_add(1, std::memory_order_relaxed);
    ++slice.evicted;
  }
  return slice;
}

uint32_t Store::Now() const {
  if (const uint32_t fixed = fixed_now_.load(std::memory_order_relaxed); fixed != 0) return fixed;
  const auto since = std::chrono::system_clock::now().time_since_epoch();
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(since).count();
  return static_cast<uint32_t>(std::clamp<int64_t>(seconds, 1, UINT32_MAX));
}

Store::Swept Store::Evict(Table& table, uint32_t first_stripe, double seconds) {
  if (!table.checked().eviction.active()) {
    throw StatusError("BadRequest", Format("table '%s' has no eviction, so that no row leaves", table.name().c_str()));
  }
  if (first_stripe >= kStripes) {
    throw StatusError("BadRequest", Format("table '%s': a sweep goes on at stripe %u, wanted less than %u",
                                           table.name().c_str(), first_stripe, kStripes));
  }
  using Clock = std::chrono::steady_clock;
  const Clock::time_point began = Clock::now();
  const uint64_t image_bytes = 2 * uint64_t{kSliceRows} * table.layout().row_bytes;
  Swept swept;
  for (uint32_t stripe = first_stripe; stripe < kStripes; ++stripe) {
    uint32_t left = UINT32_MAX;
    while (left > 0) {
      // Room in memory goes before a checkpoint, as it does for a push.
      if (limits_.memory_bytes != 0 && cutting_.load(std::memory_order_relaxed) &&
          bytes() + image_bytes > limits_.memory_bytes) {
        CrowdOut();
      }
      const Clock::time_point slice_began = Clock::now();
      Slice slice;
      {
        const std::unique_lock<std::shared_mutex> lock(stripe_locks_[stripe]);
        table.ReserveImages(stripe, 2 * uint64_t{kSliceRows});
        slice = table.Evict(stripe, &left, Now());
      }
      swept.looked_at += slice.looked_at;
      swept.evicted += slice.evicted;
      // Half of the time at most: calls go before it.
      if (left > 0) std::this_thread::sleep_for(Clock::now() - slice_began);
    }
    swept.next_stripe = stripe + 1;
    if (std::chrono::duration<double>(Clock::now() - began).count() >= seconds) break;
  }
  return swept;
}

}  // namespace tablebay
