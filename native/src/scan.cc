#include <algorithm>
#include <cstring>

#include "tablebay/status.h"
#include "tablebay/store.h"

namespace tablebay {
namespace {

// A scan's position: the stripe + 1, and the rows of it yet to be seen. Rows are seen from the last to the first,
// since a deletion moves the last row to a lower position, and an insertion appends.
constexpr uint32_t kPositionBits = 40;
constexpr uint64_t kWholeStripe = (uint64_t{1} << kPositionBits) - 1;

}  // namespace

Store::Scanned Store::Scan(const Table& table, uint64_t position, uint32_t rows_max) const {
  uint64_t stripe = position == 0 ? 0 : (position >> kPositionBits) - 1;
  uint64_t left = position == 0 ? kWholeStripe : position & kWholeStripe;
  if (stripe >= kStripes) {
    throw StatusError("BadRequest", Format("table '%s': %llu is no position of a scan; wanted 0 or one answered",
                                           table.name().c_str(), static_cast<unsigned long long>(position)));
  }
  if (rows_max == 0) {
    throw StatusError("BadRequest", Format("table '%s': rows_max is 0, wanted at least 1", table.name().c_str()));
  }
  const uint64_t row_bytes = table.wire_bytes();
  if (limits_.message_bytes != 0) {
    const uint64_t fit = std::max<uint64_t>(
        1, (limits_.message_bytes - std::min<uint64_t>(limits_.message_bytes, 4096)) / (row_bytes + sizeof(uint64_t)));
    rows_max = static_cast<uint32_t>(std::min<uint64_t>(rows_max, fit));
  }
  Scanned scanned{};
  uint64_t count = 0;
  for (; stripe < kStripes; ++stripe, left = kWholeStripe) {
    const std::shared_lock<std::shared_mutex> lock(stripe_locks_[stripe]);
    left = std::min<uint64_t>(left, table.StripeRows(static_cast<uint32_t>(stripe)));
    const uint64_t n = std::min<uint64_t>(left, rows_max - count);
    scanned.keys.resize((count + n) * sizeof(uint64_t));
    scanned.rows.resize((count + n) * row_bytes);
    for (uint64_t i = 0; i < n; ++i, ++count) {
      const auto at = static_cast<uint32_t>(--left);
      const uint64_t key = table.KeyAt(static_cast<uint32_t>(stripe), at);
      std::memcpy(scanned.keys.data() + count * sizeof key, &key, sizeof key);
      table.CopyWeights(static_cast<uint32_t>(stripe), at, scanned.rows.data() + count * row_bytes);
    }
    if (left > 0) {
      scanned.position = (stripe + 1) << kPositionBits | left;
      return scanned;
    }
    if (count == rows_max && stripe + 1 < kStripes) {
      scanned.position = (stripe + 2) << kPositionBits | kWholeStripe;
      return scanned;
    }
  }
  return scanned;
}

double Store::IndexProbes(const Table& table) const {
  uint64_t rows = 0;
  uint64_t passed = 0;
  for (uint32_t stripe = 0; stripe < kStripes; ++stripe) {
    const std::shared_lock<std::shared_mutex> lock(stripe_locks_[stripe]);
    rows += table.StripeRows(stripe);
    passed += table.BucketsPassed(stripe);
  }
  return rows == 0 ? 0 : 1 + static_cast<double>(passed) / static_cast<double>(rows);
}

}  // namespace tablebay
