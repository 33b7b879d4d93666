// Which rows leave a table by themselves: what its options say, and why a row left.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "tablebay/hash.h"

namespace tablebay {

struct TableOptions;
enum class ElementType;

// A row leaves for the first that holds, in this order; kLru and kLfu are a budget's, by its policy.
enum class Reason : uint8_t { kTtl, kCount, kNorm, kScore, kUnseen, kLru, kLfu };
inline constexpr uint32_t kReasons = 7;
inline constexpr std::array<const char*, kReasons> kReasonNames = {"ttl",    "count", "norm", "score",
                                                                   "unseen", "lru",   "lfu"};

// Which rows a budget has leave first: those that were not seen for the longest, or those with the fewest pushes.
enum class Policy { kLru, kLfu };

// 0 of any: not asked. Seconds are of the server's clock.
struct EvictionRules {
  uint32_t ttl_seconds = 0;    // since a push or an assignment named the key, or the row was made
  uint32_t min_count = 0;      // pushes that the row must have had by the end of its grace
  double min_norm = 0;         // what the L2 norm of its weights must be from the end of its grace on
  uint32_t grace_seconds = 0;  // since the row was made
  // The budget: of the table on all of its servers.
  uint64_t max_rows = 0;
  uint64_t max_bytes = 0;
  Policy policy = Policy::kLru;
  // The CTR score. Days are counted by Store::Decay.
  double decay = 0;              // what shows and clicks are multiplied by when a day ends
  double min_score = 0;          // what a row must have of clicks and shows when a day has ended
  double show_weight = 0.1;      // of a show without a click, in the score
  double click_weight = 1;       // of a click
  uint32_t max_unseen_days = 0;  // that may have ended since a push or an assignment named the key
  uint32_t events_kept = 0;      // of rows that left
  bool counts_shows() const { return decay > 0 || min_score > 0 || max_unseen_days > 0; }
  bool has_budget() const { return max_rows > 0 || max_bytes > 0; }
  bool active() const { return ttl_seconds > 0 || min_count > 0 || min_norm > 0 || has_budget() || counts_shows(); }
  // What a row must remember.
  bool asks_seen() const { return ttl_seconds > 0 || (has_budget() && policy == Policy::kLru); }
  bool asks_pushes() const { return min_count > 0 || (has_budget() && policy == Policy::kLfu); }
};

// Throws StatusError(BadRequest) naming the parameter, the value found and the value wanted.
EvictionRules CheckEviction(const TableOptions& options, ElementType type);

// When something happens to a stripe's rows.
struct Moment {
  uint32_t now = 0;                               // Unix time in seconds
  std::array<uint32_t, kShardsPerStripe> days{};  // of each shard: how many have ended, + 1
  const char* counts = nullptr;                   // of a push: for each key shows and clicks, float32; null: one show
  uint32_t Today(uint64_t hash) const { return days[ShardOfHash(hash) % kShardsPerStripe]; }
};

// What a row has of shows and clicks.
struct Shows {
  float shows = 0;
  float clicks = 0;
};
inline constexpr uint32_t kCountsBytes = sizeof(Shows);

// The table, int64 of dim 2, that says how many days have ended: for each shard a row of KeyOfShard, of the number of
// the last epoch, and how many days that makes. What is pushed to it raises the former, and the latter by as many.
inline constexpr uint32_t kDaysDim = 2;
std::string DaysOf(const std::string& name);
bool IsDays(const TableOptions& options);

// What one slice of a sweep did. A slice is what a stripe's lock is held for.
inline constexpr uint32_t kSliceRows = 512;
struct Slice {
  uint32_t looked_at = 0;
  uint32_t evicted = 0;
};

// Which rows leave for a budget. First all rows are counted by how near they are to leaving, in buckets of at most
// 1/128 of it; then those leave that are nearer than the border, and of those in the border's own bucket as many as are
// still too many, spread over the sweep. Thread safety: none.
class Surplus {
 public:
  // value: age in seconds, or pushes.
  static uint32_t Bucket(Policy policy, uint32_t value);
  void BeginCount(uint32_t now);
  void Count(uint32_t bucket) { ++rows_[bucket]; }
  void CountKept() { ++kept_; }  // a row that stays whatever the budget
  void EndCount(uint64_t budget);
  // Whether the next row of that bucket leaves.
  bool Takes(uint32_t bucket);

  uint32_t now() const { return now_; }
  bool counting() const { return counting_; }
  bool any() const { return left_ > 0; }
  uint32_t next_stripe = 0;  // of the count

 private:
  static constexpr uint32_t kBuckets = 3328;
  uint32_t now_ = 0;  // of the count, and of all that follows it
  bool counting_ = false;
  std::vector<uint64_t> rows_;  // by bucket, the first to leave first
  uint64_t kept_ = 0;
  uint32_t border_ = 0;
  uint64_t border_rows_ = 0;
  uint64_t border_take_ = 0;
  uint64_t border_seen_ = 0;
  uint64_t left_ = 0;  // rows that are yet to leave
};

// The rows that left last, numbered in the order in which they did.
// Thread safety: every method may be called from any thread.
class Events {
 public:
  struct Event {
    uint64_t key;
    uint32_t time;
    Reason reason;
  };
  explicit Events(uint32_t kept) : kept_(kept) {}
  // Memory, if they are kept, is counted in `bytes_total`.
  void Add(const std::vector<Event>& events, std::atomic<uint64_t>* bytes_total);
  // Up to `most` from number `from` on, or from the oldest that is kept; the number of the first.
  uint64_t Read(uint64_t from, uint64_t most, std::vector<Event>* out) const;

 private:
  const uint32_t kept_;
  mutable std::mutex mutex_;
  std::vector<Event> ring_;
  uint64_t next_ = 0;
};

}  // namespace tablebay
