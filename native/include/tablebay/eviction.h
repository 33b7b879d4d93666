// Which rows leave a table by themselves: what its options say, and why a row left.
#pragma once

#include <array>
#include <cstdint>

namespace tablebay {

struct TableOptions;
enum class ElementType;

// In the order in which they are asked: a row leaves for the first that holds.
enum class Reason { kTtl, kCount, kNorm };
inline constexpr uint32_t kReasons = 3;
inline constexpr std::array<const char*, kReasons> kReasonNames = {"ttl", "count", "norm"};

// 0 of any: not asked. Seconds are of the server's clock.
struct EvictionRules {
  uint32_t ttl_seconds = 0;    // since a push or an assignment named the key, or the row was made
  uint32_t min_count = 0;      // pushes that the row must have had by the end of its grace
  double min_norm = 0;         // what the L2 norm of its weights must be from the end of its grace on
  uint32_t grace_seconds = 0;  // since the row was made
  bool active() const { return ttl_seconds > 0 || min_count > 0 || min_norm > 0; }
};

// Throws StatusError(BadRequest) naming the parameter, the value found and the value wanted.
EvictionRules CheckEviction(const TableOptions& options, ElementType type);

// What one slice of a sweep did. A slice is what a stripe's lock is held for.
inline constexpr uint32_t kSliceRows = 512;
struct Slice {
  uint32_t looked_at = 0;
  uint32_t evicted = 0;
};

}  // namespace tablebay
