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
#include <functional>
#include <thread>

#include "tablebay/crc32c.h"
#include "tablebay/narrow.h"
#include "tablebay/schedule.h"
#include "tablebay/status.h"
#include "tablebay/store.h"
#include "tablebay/table.h"

namespace tablebay {
namespace {

constexpr double kSecondsMax = 0x1p31;
constexpr double kCountMax = 0x1p31;
constexpr double kBudgetMax = 0x1p53;
constexpr double kEventsMax = 0x1p24;
constexpr uint32_t kEventsKept = 65536;  // unless something else is asked
constexpr uint32_t kIndexBytes = 8;      // of a row, beside the row itself
constexpr uint32_t kCountSliceRows = 4096;

uint32_t LoadU32(const char* at) {
  uint32_t value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

void StoreU32(char* at, uint32_t value) { std::memcpy(at, &value, sizeof value); }

float LoadF32(const char* at) {
  float value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

void StoreF32(char* at, float value) { std::memcpy(at, &value, sizeof value); }

constexpr uint32_t kDaysMax = 1u << 31;

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
    return static_cast<uint64_t>(value);
  };
  const auto small = [&](const std::string& key, double value, double most) {
    return static_cast<uint32_t>(whole(key, value, most));
  };
  const auto part = [&](const std::string& key, double value, double most) {
    if (!(value >= 0 && value <= most)) {
      throw StatusError("BadRequest",
                        Format("table '%s': eviction: %s is %g, wanted 0 to %g", name, key.c_str(), value, most));
    }
    return value;
  };
  rules.events_kept = kEventsKept;
  for (const auto& [key, value] : options.eviction) {
    if (key == "ttl_seconds") {
      rules.ttl_seconds = small(key, value, kSecondsMax);
    } else if (key == "min_count") {
      rules.min_count = small(key, value, kCountMax);
    } else if (key == "grace_seconds") {
      rules.grace_seconds = small(key, value, kSecondsMax);
    } else if (key == "min_norm") {
      rules.min_norm = part(key, value, 1e30);
    } else if (key == "max_rows") {
      rules.max_rows = whole(key, value, kBudgetMax);
    } else if (key == "max_bytes") {
      rules.max_bytes = whole(key, value, kBudgetMax);
    } else if (key == "policy") {
      rules.policy = static_cast<Policy>(whole(key, value, 1));
    } else if (key == "decay") {
      rules.decay = part(key, value, 1);
    } else if (key == "min_score") {
      rules.min_score = part(key, value, 1e30);
    } else if (key == "show_weight") {
      rules.show_weight = part(key, value, 1e30);
    } else if (key == "click_weight") {
      rules.click_weight = part(key, value, 1e30);
    } else if (key == "max_unseen_days") {
      rules.max_unseen_days = small(key, value, kCountMax);
    } else if (key == "events_kept") {
      rules.events_kept = small(key, value, kEventsMax);
    } else {
      throw StatusError("BadRequest", Format("table '%s': eviction has no parameter '%s'; wanted ttl_seconds, "
                                             "min_count, min_norm, grace_seconds, max_rows, max_bytes, policy, decay, "
                                             "min_score, show_weight, click_weight, max_unseen_days and events_kept",
                                             name, key.c_str()));
    }
  }
  if (options.eviction.empty()) return rules;
  if (!rules.active()) {
    throw StatusError("BadRequest",
                      Format("table '%s': eviction says nothing; wanted ttl_seconds, min_count, min_norm, "
                             "max_rows or max_bytes",
                             name));
  }
  const bool waits = rules.min_count > 0 || rules.min_norm > 0;
  const bool may_wait = waits || (rules.has_budget() && rules.policy == Policy::kLfu);
  if ((waits && rules.grace_seconds == 0) || (!may_wait && rules.grace_seconds > 0)) {
    throw StatusError("BadRequest",
                      Format("table '%s': eviction: grace_seconds is %u, wanted more than 0 with min_count or "
                             "min_norm, and 0 without them and policy LFU",
                             name, rules.grace_seconds));
  }
  if (rules.min_score > 0 && rules.decay == 0) {
    throw StatusError("BadRequest",
                      Format("table '%s': eviction: decay is 0, wanted more than 0, at most 1, with min_score", name));
  }
  for (const char* const weight : {"show_weight", "click_weight"}) {
    if (rules.min_score > 0 || !options.eviction.contains(weight)) continue;
    throw StatusError("BadRequest", Format("table '%s': eviction: found %s, wanted min_score with it", name, weight));
  }
  if (!rules.has_budget() && rules.policy != Policy::kLru) {
    throw StatusError("BadRequest",
                      Format("table '%s': eviction: policy is LFU, wanted max_rows or max_bytes with it", name));
  }
  if (rules.min_norm > 0 && type == ElementType::kInt64) {
    throw StatusError("BadRequest",
                      Format("table '%s': eviction: min_norm is %g and dtype int64; wanted it of weights alone", name,
                             rules.min_norm));
  }
  return rules;
}

std::string DaysOf(const std::string& name) { return name + "--days"; }

bool IsDays(const TableOptions& options) {
  const std::string suffix = DaysOf("");
  return options.name.ends_with(suffix) && options.name.size() > suffix.size() && options.element_type == "int64" &&
         options.dim == kDaysDim;
}

// The rule of a table of days. Numbers of epochs may come twice, and in any order: only a higher one ends days.
void Table::RaiseDays(const Update& update) {
  for (uint32_t j = 0; j < update.count; ++j) {
    int64_t epoch;
    int64_t row[kDaysDim];  // the last epoch, days that have ended
    std::memcpy(&epoch, update.gradients[j], sizeof epoch);
    std::memcpy(row, update.rows[j] + update.weights, sizeof row);
    if (row[1] == 0) {
      row[1] = 1;
    } else if (epoch > row[0]) {
      row[1] = std::min<int64_t>(kDaysMax, row[1] + std::min<int64_t>(kDaysMax, epoch - row[0]));
    } else {
      continue;
    }
    row[0] = epoch;
    std::memcpy(update.rows[j] + update.weights, row, sizeof row);
  }
}

void Table::See(char* row, const Moment& moment, uint64_t hash, uint32_t pushes, const Shows& shows) const {
  const RowLayout& at = layout();
  if (at.seen != 0) StoreU32(row + at.seen, moment.now);
  if (at.born != 0 && LoadU32(row + at.born) == 0) StoreU32(row + at.born, moment.now);
  if (at.pushes != 0) {
    const uint32_t before = LoadU32(row + at.pushes);
    if (before < UINT32_MAX) StoreU32(row + at.pushes, before + pushes);
  }
  if (at.day == 0) return;
  const uint32_t today = moment.Today(hash);
  const Shows before = ShowsOf(row, today);
  StoreF32(row + at.shows, before.shows + shows.shows);
  StoreF32(row + at.clicks, before.clicks + shows.clicks);
  StoreU32(row + at.day, today);
}

// As they are after the days that have ended since they were last written.
Shows Table::ShowsOf(const char* row, uint32_t today) const {
  const RowLayout& at = layout();
  Shows shows{LoadF32(row + at.shows), LoadF32(row + at.clicks)};
  const uint32_t day = LoadU32(row + at.day);
  if (day == 0 || today <= day || checked_.eviction.decay == 0) return shows;
  const double faded = Power(checked_.eviction.decay, today - day);
  shows.shows = static_cast<float>(shows.shows * faded);
  shows.clicks = static_cast<float>(shows.clicks * faded);
  return shows;
}

void Table::Forget(char* row) const {
  const RowLayout& at = layout();
  for (const uint32_t place : {at.seen, at.born, at.pushes, at.shows, at.clicks, at.day}) {
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

bool Table::Leaves(const char* row, const Moment& moment, Reason* reason) const {
  const EvictionRules& rules = checked_.eviction;
  const RowLayout& at = layout();
  const uint32_t now = moment.now;
  if (at.day != 0) {
    // Only once a day has ended since the row was seen: a new row has few shows.
    const uint32_t today = moment.Today(HashKey(StoredKey(row)));
    const uint32_t day = LoadU32(row + at.day);
    const uint32_t unseen = day != 0 && today > day ? today - day : 0;
    if (rules.max_unseen_days > 0 && unseen > rules.max_unseen_days) {
      *reason = Reason::kUnseen;
      return true;
    }
    if (rules.min_score > 0 && unseen > 0) {
      const Shows shows = ShowsOf(row, today);
      const double score =
          (double{shows.shows} - double{shows.clicks}) * rules.show_weight + double{shows.clicks} * rules.click_weight;
      if (score < rules.min_score) {
        *reason = Reason::kScore;
        return true;
      }
    }
  }
  if (rules.ttl_seconds > 0 && Since(LoadU32(row + at.seen), now) >= rules.ttl_seconds) {
    *reason = Reason::kTtl;
    return true;
  }
  if (InGrace(row, now)) return false;
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

bool Table::InGrace(const char* row, uint32_t now) const {
  const uint32_t grace = checked_.eviction.grace_seconds;
  return grace > 0 && Since(LoadU32(row + layout().born), now) < grace;
}

// REQUIRES a budget.
uint32_t Table::SurplusBucket(const char* row, uint32_t now) const {
  const Policy policy = checked_.eviction.policy;
  const RowLayout& at = layout();
  return Surplus::Bucket(policy,
                         policy == Policy::kLru ? Since(LoadU32(row + at.seen), now) : LoadU32(row + at.pushes));
}

bool Table::LeavesForBudget(const char* row, Surplus* surplus, Reason* reason) const {
  const bool by_age = checked_.eviction.policy == Policy::kLru;
  if (!surplus->any() || (!by_age && InGrace(row, surplus->now()))) return false;
  if (!surplus->Takes(SurplusBucket(row, surplus->now()))) return false;
  *reason = by_age ? Reason::kLru : Reason::kLfu;
  return true;
}

uint32_t Table::CountSurplus(uint32_t stripe_index, uint32_t left, const Moment& moment, Surplus* surplus) const {
  const Stripe& stripe = all_->stripes[stripe_index];
  const bool by_age = checked_.eviction.policy == Policy::kLru;
  left = std::min(left, stripe.rows);
  for (uint32_t looked_at = 0; left > 0 && looked_at < kCountSliceRows; ++looked_at) {
    const char* const row = Row(stripe, --left);
    Reason reason;
    if (Leaves(row, moment, &reason)) continue;
    if (!by_age && InGrace(row, surplus->now())) {
      surplus->CountKept();
    } else {
      surplus->Count(SurplusBucket(row, surplus->now()));
    }
  }
  return left;
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

Slice Table::Evict(uint32_t stripe_index, uint32_t* left, const Moment& moment, Surplus* surplus) {
  Stripe& stripe = all_->stripes[stripe_index];
  *left = std::min(*left, stripe.rows);
  Slice slice;
  std::vector<Events::Event> events;
  stripe.RaiseVersion();
  for (; *left > 0 && slice.looked_at < kSliceRows; ++slice.looked_at) {
    const uint32_t position = --*left;
    char* const row = Row(stripe, position);
    Reason reason;
    if (layout().day != 0) Date(stripe, position, row, moment);
    if (!Leaves(row, moment, &reason) && !LeavesForBudget(row, surplus, &reason)) continue;
    const uint64_t key = KeyAt(stripe_index, position);
    Remove(stripe, position, key, HashKey(key));
    evicted_[static_cast<size_t>(reason)].fetch_add(1, std::memory_order_relaxed);
    events.push_back({key, moment.now, reason});
    ++slice.evicted;
  }
  events_.Add(events, bytes_total_);
  return slice;
}

// A row that was loaded without its day, or with one of a table whose days are not known here, was seen today.
void Table::Date(Stripe& stripe, uint32_t position, char* row, const Moment& moment) {
  const uint32_t day = LoadU32(row + layout().day);
  const uint32_t today = moment.Today(HashKey(StoredKey(row)));
  if (day != 0 && day <= today) return;
  if (stripe.cutting) SaveImage(stripe, position);
  StoreU32(row + layout().day, today);
  Touch(stripe, position, row);
}

uint32_t Surplus::Bucket(Policy policy, uint32_t value) {
  uint32_t bucket = value;
  if (value >= 256) {
    const auto shift = static_cast<uint32_t>(24 - __builtin_clz(value));  // to 128 .. 255
    bucket = shift * 128 + (value >> shift);
  }
  return policy == Policy::kLru ? kBuckets - 1 - bucket : bucket;
}

void Surplus::BeginCount(uint32_t now) {
  counting_ = true;
  now_ = now;
  next_stripe = 0;
  left_ = 0;
  kept_ = 0;
  rows_.assign(kBuckets, 0);
}

void Surplus::EndCount(uint64_t budget) {
  counting_ = false;
  uint64_t rows = 0;
  for (const uint64_t some : rows_) rows += some;
  left_ = rows + kept_ > budget ? std::min(rows, rows + kept_ - budget) : 0;
  uint64_t before = 0;
  for (border_ = 0; border_ < kBuckets && before + rows_[border_] < left_; ++border_) before += rows_[border_];
  border_rows_ = border_ < kBuckets ? rows_[border_] : 0;
  border_take_ = left_ - before;
  border_seen_ = 0;
  std::vector<uint64_t>().swap(rows_);
}

bool Surplus::Takes(uint32_t bucket) {
  if (left_ == 0 || bucket > border_) return false;
  if (bucket == border_) {
    if (border_seen_ >= border_rows_) return false;
    // As evenly as whole numbers go: as many more as the share of those seen so far has grown.
    const auto due = [&](uint64_t seen) {
      return static_cast<uint64_t>(static_cast<double>(seen) * static_cast<double>(border_take_) /
                                   static_cast<double>(border_rows_));
    };
    const uint64_t before = due(border_seen_);
    if (due(++border_seen_) == before) return false;
  }
  --left_;
  return true;
}

void Events::Add(const std::vector<Event>& events, std::atomic<uint64_t>* bytes_total) {
  if (events.empty()) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const Event& event : events) {
    if (kept_ > 0 && ring_.size() < kept_) {
      const size_t before = ring_.capacity();
      ring_.push_back(event);
      bytes_total->fetch_add((ring_.capacity() - before) * sizeof(Event), std::memory_order_relaxed);
    } else if (kept_ > 0) {
      ring_[next_ % kept_] = event;
    }
    ++next_;
  }
}

uint64_t Events::Read(uint64_t from, uint64_t most, std::vector<Event>* out) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const uint64_t oldest = next_ - ring_.size();
  const uint64_t first = std::clamp(from, oldest, next_);
  for (uint64_t number = first; number < next_ && number - first < most; ++number) {
    out->push_back(ring_[number % kept_]);
  }
  return first;
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
  const std::lock_guard<std::mutex> one_at_a_time(table.sweep_mutex());
  using Clock = std::chrono::steady_clock;
  const Clock::time_point began = Clock::now();
  const auto is_over = [&] { return std::chrono::duration<double>(Clock::now() - began).count() >= seconds; };
  Surplus& surplus = table.surplus();
  const Table* const days = DaysTable(table);
  Swept swept;
  if (first_stripe == 0 && table.checked().eviction.has_budget() && !CountSurplus(table, is_over)) return swept;
  const uint64_t image_bytes = 2 * uint64_t{kSliceRows} * table.layout().row_bytes;
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
        slice = table.Evict(stripe, &left, MomentOf(table, days, stripe), &surplus);
      }
      swept.looked_at += slice.looked_at;
      swept.evicted += slice.evicted;
      // Half of the time at most: calls go before it.
      if (left > 0) std::this_thread::sleep_for(Clock::now() - slice_began);
    }
    swept.next_stripe = stripe + 1;
    if (is_over()) break;
  }
  return swept;
}

// Of the table's budget, what this server's shards are of all.
uint64_t Store::BudgetOf(const Table& table) const {
  const EvictionRules& rules = table.checked().eviction;
  uint64_t rows = rules.max_rows > 0 ? rules.max_rows : UINT64_MAX / kShards;
  if (rules.max_bytes > 0) rows = std::min(rows, rules.max_bytes / (table.layout().row_bytes + kIndexBytes));
  const std::shared_lock<std::shared_mutex> lock(map_lock_);
  return rows * owned_.count() / kShards;
}

// Counts on where the call before stopped; whether all is counted. REQUIRES the table's sweep mutex.
bool Store::CountSurplus(Table& table, const std::function<bool()>& is_over) {
  using Clock = std::chrono::steady_clock;
  Surplus& surplus = table.surplus();
  const uint64_t budget = BudgetOf(table);
  const Table* const days = DaysTable(table);
  if (!surplus.counting()) {
    surplus.BeginCount(Now());
    if (table.rows() <= budget) surplus.next_stripe = kStripes;
  }
  while (surplus.next_stripe < kStripes) {
    uint32_t left = UINT32_MAX;
    while (left > 0) {
      const Clock::time_point slice_began = Clock::now();
      {
        const std::shared_lock<std::shared_mutex> lock(stripe_locks_[surplus.next_stripe]);
        Moment moment = MomentOf(table, days, surplus.next_stripe);
        moment.now = surplus.now();
        left = table.CountSurplus(surplus.next_stripe, left, moment, &surplus);
      }
      if (left > 0) std::this_thread::sleep_for(Clock::now() - slice_began);
    }
    ++surplus.next_stripe;
    if (is_over()) break;
  }
  if (surplus.next_stripe < kStripes) return false;
  surplus.EndCount(budget);
  return true;
}

// Null where the table counts no shows.
Table* Store::DaysTable(const Table& table) const {
  if (!table.checked().eviction.counts_shows()) return nullptr;
  const std::string name = DaysOf(table.name());
  Table& days = FindTable(Crc32c(name.data(), name.size()));
  if (!IsDays(days.checked().options)) {
    throw StatusError("BadRequest",
                      Format("table '%s': table '%s' is not int64 of dim %u, so that it cannot count days",
                             table.name().c_str(), name.c_str(), kDaysDim));
  }
  return &days;
}

namespace {

// A key of each shard.
const std::array<uint64_t, kShards>& ShardKeys() {
  static const auto keys = [] {
    std::array<uint64_t, kShards> all;
    for (uint32_t shard = 0; shard < kShards; ++shard) all[shard] = KeyOfShard(shard);
    return all;
  }();
  return keys;
}

}  // namespace

// REQUIRES the stripe's lock.
Moment Store::MomentOf(const Table& table, const Table* days, uint32_t stripe) const {
  Moment moment;
  if (!table.checked().eviction.active()) return moment;
  moment.now = Now();
  if (days == nullptr) return moment;
  int64_t rows[kShardsPerStripe][kDaysDim];
  const Run run{reinterpret_cast<const char*>(ShardKeys().data() + stripe * kShardsPerStripe), nullptr, 0,
                kShardsPerStripe};
  days->Read(stripe, run, days->layout().weights, sizeof rows[0], reinterpret_cast<char*>(rows), nullptr);
  for (uint32_t i = 0; i < kShardsPerStripe; ++i) {
    moment.days[i] = static_cast<uint32_t>(std::clamp<int64_t>(rows[i][1], 0, kDaysMax)) + 1;
  }
  return moment;
}

bool Store::Decay(Table& table, uint32_t epoch) {
  Table* const days = DaysTable(table);
  if (days == nullptr) {
    throw StatusError("BadRequest",
                      Format("table '%s' counts no shows, so that nothing decays; wanted decay, min_score "
                             "or max_unseen_days in its eviction",
                             table.name().c_str()));
  }
  std::vector<uint64_t> keys;
  {
    const std::shared_lock<std::shared_mutex> lock(map_lock_);
    for (uint32_t shard = 0; shard < kShards; ++shard) {
      if (owned_[shard]) keys.push_back(ShardKeys()[shard]);
    }
  }
  if (keys.empty()) return false;
  const std::string_view key_bytes(reinterpret_cast<const char*>(keys.data()), keys.size() * sizeof keys[0]);
  std::vector<int64_t> rows(keys.size() * kDaysDim);
  Pull(*days, key_bytes, kUnique | kReadOnly, reinterpret_cast<char*>(rows.data()));
  bool changes = false;
  for (size_t i = 0; i < rows.size(); i += kDaysDim) {
    changes = changes || rows[i + 1] == 0 || rows[i] < epoch;
    rows[i] = epoch;
    rows[i + 1] = 0;
  }
  if (!changes) return false;
  Push(*days, key_bytes, {reinterpret_cast<const char*>(rows.data()), rows.size() * sizeof rows[0]}, kUnique);
  return true;
}

}  // namespace tablebay
