// What is asked of a call before its first row changes, and in which order its keys lie.
#include <algorithm>
#include <cstring>
#include <functional>

#include "piece.h"
#include "tablebay/bulk.h"
#include "tablebay/crc32c.h"
#include "tablebay/crew.h"
#include "tablebay/status.h"

namespace tablebay {
namespace {

constexpr uint32_t kSample = 1024;  // keys

// Whether a key of the run comes twice.
bool Repeats(const Run& run) {
  // 1 + where in the run the slot's key is.
  static thread_local std::vector<uint32_t> slots;
  size_t size = 16;
  while (size < 2 * uint64_t{run.size()}) size *= 2;
  slots.assign(size, 0);
  for (uint32_t i = run.begin; i < run.end; ++i) {
    const uint64_t key = LoadKey(run.keys, run.At(i));
    size_t slot = HashKey(key) & (size - 1);
    for (; slots[slot] != 0; slot = (slot + 1) & (size - 1)) {
      if (LoadKey(run.keys, run.At(run.begin + slots[slot] - 1)) == key) return true;
    }
    slots[slot] = i - run.begin + 1;
  }
  return false;
}

std::shared_ptr<const Router> OneServer() {
  static const auto router = std::make_shared<const Router>(std::vector<uint16_t>(kShards, 0), 1);
  return router;
}

}  // namespace

uint32_t ChecksumOf(const Part& part) {
  uint32_t crc = BulkCrc32c(part.keys.data(), part.keys.size());
  crc = BulkCrc32c(part.rows.data(), part.rows.size(), crc);
  return Crc32c(part.counts.data(), part.counts.size(), crc);
}

// All that can be said of a part without looking at a row.
Store::Piece Store::CheckPart(const Part& part, bool push) const {
  Piece piece;
  piece.table = &FindTable(part.table_id);
  const Table& table = *piece.table;
  const char* const name = table.name().c_str();
  if (part.dim != table.dim()) {
    throw StatusError("BadRequest",
                      Format("table '%s': the message says dim %u, the table has dim %u", name, part.dim, table.dim()));
  }
  if (part.keys.size() % sizeof(uint64_t) != 0) {
    throw StatusError("BadRequest",
                      Format("table '%s': %zu bytes of keys, wanted a multiple of 8", name, part.keys.size()));
  }
  const uint64_t count = part.keys.size() / sizeof(uint64_t);
  if (limits_.keys_per_call != 0 && count > limits_.keys_per_call) {
    throw StatusError("ResourceExhausted", Format("table '%s': %llu keys in one call, wanted at most %llu", name,
                                                  Wide(count), Wide(limits_.keys_per_call)));
  }
  const uint32_t known = push ? kUnique | kAssign | kDelete : kUnique | kReadOnly | kState | kContains | kShows;
  const uint32_t kinds = push ? kAssign | kDelete : kState | kContains | kShows;
  if ((part.flags & ~known) != 0 || __builtin_popcount(part.flags & kinds) > 1) {
    throw StatusError("BadRequest",
                      Format("table '%s': flags %u are not those of a %s", name, part.flags, push ? "push" : "pull"));
  }
  piece.push = push;
  piece.flags = part.flags;
  piece.count = static_cast<uint32_t>(count);
  piece.days = DaysTable(table);
  CheckCounts(part, piece);
  const uint64_t row_bytes = push && (part.flags & kDelete) == 0 ? table.wire_bytes() : 0;
  if (part.rows.size() != count * row_bytes) {
    throw StatusError("BadRequest", Format("table '%s': %zu bytes of rows for %llu keys, wanted %llu", name,
                                           part.rows.size(), Wide(count), Wide(count * row_bytes)));
  }
  if (push && (part.flags & kinds) == 0 && table.checked().options.admit_at > 1) {
    const std::string counts = SightingsOf(table.name());
    piece.sightings = &FindTable(Crc32c(counts.data(), counts.size()));
    if (piece.sightings->checked().element_type != ElementType::kInt64 ||
        piece.sightings->dim() != SightingsDim(table.checked().options)) {
      throw StatusError("BadRequest",
                        Format("table '%s': table '%s' is not int64 of dim %u, so that it cannot count its "
                               "keys",
                               name, counts.c_str(), SightingsDim(table.checked().options)));
    }
  }
  piece.keys = part.keys.data();
  piece.rows = part.rows.data();
  if (!part.counts.empty()) piece.counts = part.counts.data();
  if ((part.flags & kState) != 0) {
    piece.bytes_each = table.layout().state_bytes();
  } else if ((part.flags & kContains) != 0) {
    piece.bytes_each = 1;
  } else if ((part.flags & kShows) != 0) {
    piece.bytes_each = kCountsBytes;
  } else {
    piece.bytes_each = table.wire_bytes();
  }
  return piece;
}

void Store::CheckChecksum(const Part& part, const Piece& piece) {
  if (!part.has_crc32c) return;
  const uint32_t crc = ChecksumOf(part);
  if (crc == part.crc32c) return;
  throw StatusError("CorruptMessage", Format("table '%s': the part's CRC-32C is %08x, and it says %08x: it was "
                                             "damaged on the way",
                                             piece.table->name().c_str(), crc, part.crc32c));
}

// All of a push's part that takes time by its keys.
void Store::CheckPush(const Part& part, Piece& piece) {
  CheckChecksum(part, piece);
  bool arranged = false;
  if ((part.flags & kUnique) == 0) {
    // Where a few keys repeat there is no need to look at all of them.
    const Run some{piece.keys, nullptr, 0, std::min(piece.count, kSample)};
    if (!Repeats(some)) {
      Arrange(piece);
      arranged = !AnyRepeats(piece);
    }
    if (!arranged) MergeRepeats(piece);
  }
  const size_t bad = FirstNonFinite(piece);
  if (bad < piece.count) MeetNonFinite(piece, bad);
  if (!arranged) Arrange(piece);
}

// After Arrange: a key lies in the same stripe wherever it occurs.
bool Store::AnyRepeats(const Piece& piece) {
  std::atomic<bool> any{false};
  const auto look = [&](uint32_t stripe) {
    if (!any.load(std::memory_order_relaxed) && Repeats(piece.RunOf(stripe)))
      any.store(true, std::memory_order_relaxed);
  };
  Crew::OfProcess().Share(kStripes, piece.count >= Crew::kKeysLarge, std::ref(look));
  return any.load(std::memory_order_relaxed);
}

// What a part says of shows and clicks, or asks of them.
void Store::CheckCounts(const Part& part, const Piece& piece) const {
  const char* const name = piece.table->name().c_str();
  const bool asks = !piece.push && (part.flags & kShows) != 0;
  if (!asks && part.counts.empty()) return;
  if (piece.days == nullptr) {
    throw StatusError("BadRequest", Format("table '%s' counts no shows and clicks; wanted decay, min_score or "
                                           "max_unseen_days in its eviction",
                                           name));
  }
  if (asks && part.counts.empty()) return;
  if (!piece.push || (part.flags & (kAssign | kDelete)) != 0) {
    throw StatusError("BadRequest", Format("table '%s': counts go with a push of gradients alone", name));
  }
  if (part.counts.size() != uint64_t{piece.count} * kCountsBytes) {
    throw StatusError("BadRequest", Format("table '%s': %zu bytes of counts for %u keys, wanted %u for each", name,
                                           part.counts.size(), piece.count, kCountsBytes));
  }
  for (uint32_t i = 0; i < piece.count; ++i) {
    Shows shows;
    std::memcpy(&shows, part.counts.data() + uint64_t{i} * kCountsBytes, sizeof shows);
    if (shows.shows >= 0 && shows.clicks >= 0 && shows.shows <= 1e30f && shows.clicks <= 1e30f) continue;
    throw StatusError("BadRequest", Format("table '%s': position %u has %g shows and %g clicks, wanted each from 0 to "
                                           "1e30",
                                           name, i, double{shows.shows}, double{shows.clicks}));
  }
}

void Store::CheckOwned(const Piece& piece) const {
  const std::shared_lock<std::shared_mutex> lock(map_lock_);
  const std::bitset<kShards> foreign = piece.shards & ~owned_;
  if (foreign.any()) {
    throw StatusError("WrongShard", Format("shard %zu of table '%s' is not this server's (map version %u)",
                                           foreign._Find_first(), piece.table->name().c_str(), map_version_));
  }
}

// Finds the stripes' runs; keys that do not lie in stripe order get an order by a counting sort.
void Store::Arrange(Piece& piece) const {
  constexpr uint32_t kChunk = 256;
  const Kernels& kernels = ActiveKernels();
  std::array<uint32_t, kStripes + 1>& begin = piece.stripe_begin;
  begin.fill(0);
  // It may have been arranged before its repeats were merged.
  piece.order.clear();
  piece.shards.reset();
  // Clients send keys shard by shard, so that a key most often has the shard of the one before it.
  bool in_order = true;
  uint32_t shard = 0;
  uint32_t since = 0;
  for (uint32_t first = 0; first < piece.count && in_order; first += kChunk) {
    uint64_t hashes[kChunk];
    const uint32_t n = std::min(kChunk, piece.count - first);
    kernels.hash_keys(piece.keys + uint64_t{first} * sizeof(uint64_t), n, hashes);
    for (uint32_t j = 0; j < n; ++j) {
      const uint32_t next = ShardOfHash(hashes[j]);
      if (next == shard) [[likely]]
        continue;
      if (next < shard) {
        in_order = false;
        break;
      }
      piece.shards[shard] = first + j > since;
      begin[StripeOfShard(shard) + 1] += first + j - since;
      since = first + j;
      shard = next;
    }
  }
  if (in_order) {
    piece.shards[shard] = piece.count > since;
    begin[StripeOfShard(shard) + 1] += piece.count - since;
    for (uint32_t stripe = 0; stripe < kStripes; ++stripe) begin[stripe + 1] += begin[stripe];
    return CheckOwned(piece);
  }
  begin.fill(0);
  std::vector<uint8_t> stripes(piece.count);
  std::array<bool, kShards> touched{};
  uint32_t previous = 0;
  in_order = true;
  for (uint32_t first = 0; first < piece.count; first += kChunk) {
    uint64_t hashes[kChunk];
    const uint32_t n = std::min(kChunk, piece.count - first);
    kernels.hash_keys(piece.keys + uint64_t{first} * sizeof(uint64_t), n, hashes);
    for (uint32_t j = 0; j < n; ++j) {
      const uint32_t stripe = StripeOfHash(hashes[j]);
      touched[ShardOfHash(hashes[j])] = true;
      stripes[first + j] = static_cast<uint8_t>(stripe);
      in_order = in_order && stripe >= previous;
      previous = stripe;
      ++begin[stripe + 1];
    }
  }
  for (uint32_t stripe = 0; stripe < kStripes; ++stripe) begin[stripe + 1] += begin[stripe];
  for (uint32_t s = 0; s < kShards; ++s) piece.shards[s] = touched[s];
  CheckOwned(piece);
  if (in_order) return;
  piece.order.resize(piece.count);
  std::array<uint32_t, kStripes> next;
  std::copy(begin.begin(), begin.end() - 1, next.begin());
  for (uint32_t i = 0; i < piece.count; ++i) piece.order[next[stripes[i]]++] = i;
}

// A push whose keys may repeat: they are summed (an assignment: the last one counts), as the SDK does before sending.
void Store::MergeRepeats(Piece& piece) const {
  piece.merged = MakePlan(OneServer(), {piece.keys, uint64_t{piece.count} * sizeof(uint64_t)});
  const Plan& plan = piece.merged;
  if (plan.repeats() && (piece.flags & kDelete) == 0) {
    const uint32_t row_bytes = piece.table->wire_bytes();
    piece.own_rows.resize(plan.unique() * row_bytes);
    if ((piece.flags & kAssign) != 0) {
      LastRows(plan, piece.rows, row_bytes, piece.own_rows.data());
    } else {
      const bool is_int64 = piece.table->checked().element_type == ElementType::kInt64;
      SumRows(plan, piece.rows, piece.table->dim(), is_int64, piece.own_rows.data());
    }
    piece.rows = piece.own_rows.data();
    if (piece.counts != nullptr) {
      piece.own_counts.resize(plan.unique() * kCountsBytes);
      SumRows(plan, piece.counts, kCountsBytes / sizeof(float), false, piece.own_counts.data());
      piece.counts = piece.own_counts.data();
    }
  }
  if (!plan.repeats()) return;
  piece.keys = reinterpret_cast<const char*>(plan.keys.data());
  piece.count = static_cast<uint32_t>(plan.unique());
}

// The first row that the table's policy is about; the count where there is none. After repeats are summed: it is the
// sums that the optimizer would take, and finite gradients can have an infinite one.
size_t Store::FirstNonFinite(const Piece& piece) {
  const Table& table = *piece.table;
  if ((piece.flags & kDelete) != 0 || table.checked().element_type == ElementType::kInt64 ||
      table.checked().non_finite == NonFinite::kAllow) {
    return piece.count;
  }
  return BulkFirstNonFinite(piece.rows, piece.count, table.dim());
}

void Store::MeetNonFinite(Piece& piece, size_t bad) {
  const Table& table = *piece.table;
  const Kernels& kernels = ActiveKernels();
  const uint32_t dim = table.dim();
  const size_t row_bytes = table.wire_bytes();
  if (table.checked().non_finite == NonFinite::kReject) {
    counters_.nonfinite_rows.fetch_add(1, std::memory_order_relaxed);
    throw StatusError("NonFinite", Format("table '%s': the row for key %llu (position %zu) has a NaN or an infinity; "
                                          "wanted finite numbers (nonFinite: Reject)",
                                          table.name().c_str(), Wide(LoadKey(piece.keys, bad)), bad));
  }
  // Zero: the element, not the row.
  std::string cleaned(piece.rows, piece.count * row_bytes);
  for (; bad < piece.count;) {
    counters_.nonfinite_rows.fetch_add(1, std::memory_order_relaxed);
    for (uint32_t d = 0; d < dim; ++d) {
      char* element = cleaned.data() + bad * row_bytes + d * sizeof(float);
      if (kernels.first_nonfinite(element, 1, 1) == 0) std::memset(element, 0, sizeof(float));
    }
    const size_t next = bad + 1;
    bad = next + kernels.first_nonfinite(cleaned.data() + next * row_bytes, piece.count - next, dim);
  }
  piece.own_rows = std::move(cleaned);
  piece.rows = piece.own_rows.data();
}

// Where a pull of the same keys found their rows. After Arrange.
void Store::GuessRows(Piece& piece) {
  if ((piece.flags & (kAssign | kDelete)) != 0) return;
  piece.guesses = recent_pulls_.Take(piece.table->id(), piece.keys, piece.count);
  if (piece.guesses != nullptr) counters_.pushes_after_pull.fetch_add(1, std::memory_order_relaxed);
}

bool Store::MayCreate(const Piece& piece) {
  if ((piece.flags & (kReadOnly | kState | kContains | kShows)) != 0 && !piece.push) return false;
  if (piece.push && (piece.flags & kDelete) != 0) return false;
  if (!piece.push) return piece.table->admits_all();
  return (piece.flags & kAssign) != 0 || piece.table->checked().push_missing == PushMissing::kCreate;
}

// Before the first row is made: the limit is soft by what calls at the same moment take.
void Store::CheckMemory(const std::vector<Piece>& pieces) {
  if (limits_.memory_bytes == 0) return;
  uint64_t wanted = 0;
  for (const Piece& piece : pieces) {
    if (MayCreate(piece)) wanted += piece.table->BytesForNew(piece.count);
    if (piece.sightings != nullptr) wanted += piece.sightings->BytesForNew(piece.count);
  }
  if (bytes() + wanted <= limits_.memory_bytes) return;
  wanted = 0;
  uint64_t missing = 0;
  for (const Piece& piece : pieces) {
    if (!MayCreate(piece)) continue;
    uint64_t rows = 0;
    for (uint32_t stripe = 0; stripe < kStripes; ++stripe) {
      const Run run = piece.RunOf(stripe);
      if (run.size() == 0) continue;
      const std::shared_lock<std::shared_mutex> lock(stripe_locks_[stripe]);
      rows += piece.table->CountMissing(stripe, run);
    }
    missing += rows;
    wanted += piece.table->BytesForNew(rows);
    if (piece.sightings != nullptr) wanted += piece.sightings->BytesForNew(rows);
  }
  if (missing == 0 || bytes() + wanted <= limits_.memory_bytes) return;
  // Training goes before a checkpoint.
  if (CrowdOut() && bytes() + wanted <= limits_.memory_bytes) return;
  throw StatusError("ResourceExhausted",
                    Format("%llu new rows want %llu bytes; this server holds %llu of its limit of "
                           "%llu",
                           Wide(missing), Wide(wanted), Wide(bytes()), Wide(limits_.memory_bytes)));
}

}  // namespace tablebay
