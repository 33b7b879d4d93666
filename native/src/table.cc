#include "tablebay/table.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "tablebay/narrow.h"
#include "tablebay/status.h"

namespace tablebay {
namespace {

constexpr uint32_t kTogether = 512;   // keys that the index is asked for at a time
constexpr uint32_t kBlock = 32;       // rows handled at a time: of 8, 16, 32, 48 and 64 the fastest
constexpr uint32_t kBlocksAhead = 2;  // whose rows are fetched: of the next one alone the last would come too late
constexpr uint32_t kCacheLine = 64;

// The CPU itself follows a row that is longer than this.
constexpr uint32_t kPrefetchBytesMax = 8 * kCacheLine;

// Always inlined, since GCC takes a function of nothing but prefetches for one without effect, and drops its calls.
[[gnu::always_inline]] inline void Prefetch(const char* row, uint64_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(row);
  for (uintptr_t line = begin & ~uintptr_t{kCacheLine - 1}; line < begin + bytes; line += kCacheLine) {
    __builtin_prefetch(reinterpret_cast<const char*>(line), 0, 2);
  }
}

[[gnu::always_inline]] inline void Prefetch(const Ahead& ahead) {
  for (uint32_t j = 0; j < ahead.count; ++j) {
    if (ahead.rows[j] != nullptr) Prefetch(ahead.rows[j], ahead.bytes);
  }
}

constexpr size_t kTombstones = 1024;

void SortUnique(std::vector<uint64_t>* keys) {
  std::sort(keys->begin(), keys->end());
  keys->erase(std::unique(keys->begin(), keys->end()), keys->end());
}

}  // namespace

Table::Rows::Rows(uint32_t row_bytes, std::atomic<uint64_t>* bytes_total) : arena(row_bytes, bytes_total) {
  for (uint32_t s = 0; s < kStripes; ++s) stripes.emplace_back(s, bytes_total);
}

Table::Table(const CheckedOptions& checked, uint32_t id, std::atomic<uint64_t>* bytes_total)
    : checked_(checked),
      id_(id),
      initial_base_(HashKey(checked.options.seed + 0x9e3779b97f4a7c15ULL * (uint64_t{id} + 1))),
      bytes_total_(bytes_total),
      all_(std::make_unique<Rows>(checked.layout.row_bytes, bytes_total)),
      slab_shift_(all_->arena.rows_per_slab_log2()),
      slab_mask_((1u << all_->arena.rows_per_slab_log2()) - 1),
      schedule_(ScheduleOf(checked.options.optimizer_parameters)),
      events_(checked.eviction.events_kept),
      evicts_(checked.eviction.active()),
      is_days_(IsDays(checked.options)) {
  const Parameters& parameters = checked_.options.optimizer_parameters;
  const auto parameter = [&](const char* name) {
    const auto found = parameters.find(name);
    return found == parameters.end() ? 0.0 : found->second;
  };
  learning_rate_.store(static_cast<float>(parameter("learning_rate")));
  ChooseFill();
  for (size_t slot = 0; slot < checked_.optimizer->slots.size(); ++slot) {
    initial_slots_.insert(initial_slots_.end(), checked_.optimizer->slots[slot].row_wise ? 1 : dim(),
                          checked_.optimizer->initial_slot(parameters, slot));
  }
  update_.dim = dim();
  update_.weights = checked_.wide.weights;
  update_.slots = checked_.wide.slots;
  update_.step = checked_.wide.step;
  update_.epsilon = static_cast<float>(parameter("epsilon"));
  update_.beta1 = static_cast<float>(parameter("beta1"));
  update_.beta2 = static_cast<float>(parameter("beta2"));
  update_.rest1 = static_cast<float>(1.0 - parameter("beta1"));
  update_.rest2 = static_cast<float>(1.0 - parameter("beta2"));
  update_.fade1 = parameter("beta1");
  update_.fade2 = parameter("beta2");
  update_.momentum = static_cast<float>(parameter("momentum"));
  weight_decay_.store(static_cast<float>(parameter("weight_decay")));
  decoupled_ = parameter("decoupled") != 0;
  update_.rho = static_cast<float>(parameter("rho"));
  update_.l21 = static_cast<float>(parameter("l21"));
  update_.clip_value = static_cast<float>(parameter("clip_value"));
  update_.clip_norm = static_cast<float>(parameter("clip_norm"));
  update_.weight_bound = static_cast<float>(parameter("weight_bound"));
  may_condition_ = update_.clip_value > 0 || update_.clip_norm > 0 || (checked_.optimizer->decays && !decoupled_);
  update_.l2_shrinkage = static_cast<float>(parameter("l2_shrinkage"));
  update_.initial_accumulator = static_cast<float>(parameter("initial_accumulator"));
  clock_ = static_cast<AdamClock>(static_cast<int>(parameter("clock")));
  update_.by_time = clock_ != AdamClock::kRow;
  if (checked_.optimizer->counts_steps) update_.seconds = checked_.optimizer->slots[1].row_wise ? 1 : dim();
  update_.beta = static_cast<float>(parameter("beta"));
  update_.l1 = static_cast<float>(parameter("l1"));
  update_.l2 = static_cast<float>(parameter("l2"));
  if (checked_.optimizer->counts_steps) {
    for (uint64_t t = 0;; ++t) {
      const double first = 1.0 - Power(parameter("beta1"), t);
      const double second = std::sqrt(1.0 - Power(parameter("beta2"), t));
      corrections1_.push_back(static_cast<float>(first));
      corrections2_.push_back(static_cast<float>(second));
      if (corrections1_.back() == 1.0f && corrections2_.back() == 1.0f) break;
    }
  }
  update_.corrections1 = corrections1_.data();
  update_.corrections2 = corrections2_.data();
  update_.corrections = static_cast<uint32_t>(corrections1_.size());
}

void Table::ChooseFill() {
  const Parameters& parameters = checked_.options.initializer_parameters;
  const auto choose = [&](FillKernel Kernels::* fill, double a, double b) {
    fill_ = fill;
    fill_a_ = static_cast<float>(a);
    fill_b_ = static_cast<float>(b);
  };
  const std::string& name = checked_.options.initializer;
  if (name == "Uniform") choose(&Kernels::fill_uniform, parameters.at("low"), parameters.at("high"));
  if (name == "Normal") choose(&Kernels::fill_normal, parameters.at("mean"), parameters.at("stddev"));
  if (name == "TruncatedNormal")
    choose(&Kernels::fill_truncated_normal, parameters.at("mean"), parameters.at("stddev"));
  if (name == "Constant") choose(&Kernels::fill_constant, parameters.at("value"), 0);
  if (name[0] == 'X') {
    const auto fan_in = parameters.find("fan_in");
    const double fans = (fan_in == parameters.end() ? dim() : fan_in->second) + dim();
    const auto limit = static_cast<float>(std::sqrt(6.0 / fans));
    choose(&Kernels::fill_uniform, -limit, limit);
  }
}

void Table::set_learning_rate(double value) {
  const bool zero = value == 0 && !checked_.optimizer->divides_by_learning_rate;
  if (!(value > 0 || zero) || value > 1e30) {
    throw StatusError("BadRequest", Format("table '%s': learning_rate is %g, wanted %s0 to 1e30", name().c_str(), value,
                                           checked_.optimizer->divides_by_learning_rate ? "more than " : ""));
  }
  learning_rate_.store(static_cast<float>(value), std::memory_order_relaxed);
}

uint64_t Table::bytes() const {
  uint64_t bytes = all_->arena.bytes();
  for (const Stripe& stripe : all_->stripes) bytes += stripe.index.bytes();
  return bytes;
}

uint32_t Table::Find(const Stripe& stripe, uint64_t key, uint64_t hash) const {
  return stripe.index.Find(hash, [&](uint32_t position) { return StoredKey(Row(stripe, position)) == key; });
}

// Many keys at a time: their hashes, and where the index has their rows or the run guesses them.
template <bool kOrdered, bool kGuided, class Visit>
void Table::VisitGuesses(const Stripe& stripe, const Run& run, Visit&& visit) const {
  uint64_t own_keys[kTogether];  // where the run's own are not in order, or not aligned
  uint64_t hashes[kTogether];
  uint32_t positions[kTogether];
  const Index::View index(stripe.index);
  const auto hash_keys = ActiveKernels().hash_keys;
  const bool hashes_all = !kGuided || evicts_ || !admits_all();  // or of the keys without a row alone
  for (uint32_t begin = run.begin; begin < run.end; begin += kTogether) {
    const uint32_t count = std::min(kTogether, run.end - begin);
    const uint32_t* const order = kOrdered ? run.order + begin : nullptr;
    const uint64_t* keys = own_keys;
    if constexpr (kOrdered) {
      for (uint32_t i = 0; i < count; ++i) own_keys[i] = LoadKey(run.keys, order[i]);
    } else if (const char* const first = run.keys + uint64_t{begin} * sizeof(uint64_t);
               reinterpret_cast<uintptr_t>(first) % alignof(uint64_t) == 0) {
      keys = reinterpret_cast<const uint64_t*>(first);
    } else {
      std::memcpy(own_keys, first, count * sizeof(uint64_t));
    }
    if (hashes_all) hash_keys(reinterpret_cast<const char*>(keys), count, hashes);
    if constexpr (kGuided) {
      for (uint32_t i = 0; i < count; ++i) positions[i] = run.guesses[kOrdered ? order[i] : begin + i];
    } else {
      index.Guess(hashes, count, positions);
    }
    visit(Guesses{begin, count, keys, hashes, positions});
  }
}

template <bool kGuided, class Visit>
void Table::ForGuesses(const Stripe& stripe, const Run& run, Visit&& visit) const {
  if (run.order == nullptr) {
    VisitGuesses<false, kGuided>(stripe, run, visit);
  } else {
    VisitGuesses<true, kGuided>(stripe, run, visit);
  }
}

// Block by block: a look whether the rows guessed are those of the keys, and `visit`, which fetches the rows of a later
// block while it works. row_bytes_wanted: of each row, from its start.
template <bool kGuided, class Visit>
void Table::ForBlocks(const Stripe& stripe, const Run& run, uint32_t row_bytes_wanted, Visit&& visit) const {
  const uint32_t bytes_ahead = std::min(row_bytes_wanted, kPrefetchBytesMax);
  ForGuesses<kGuided>(stripe, run, [&](const Guesses& guesses) {
    const uint32_t count = guesses.count;
    const uint32_t rows = stripe.rows;
    char* blocks[4][kBlock];  // in turn
    // The rows of the block that begins at `first`.
    const auto ahead_of = [&](uint32_t first) {
      char** const found = blocks[first / kBlock % 4];
      const uint32_t n = first < count ? std::min(kBlock, count - first) : 0;
      const uint32_t* const positions = guesses.positions + first;
      for (uint32_t j = 0; j < n; ++j) found[j] = positions[j] < rows ? Row(stripe, positions[j]) : nullptr;
      return Ahead{found, n, bytes_ahead};
    };
    for (uint32_t first = 0; first < kBlocksAhead * kBlock; first += kBlock) Prefetch(ahead_of(first));
    for (uint32_t first = 0; first < count; first += kBlock) {
      const uint32_t n = std::min(kBlock, count - first);
      const Ahead ahead = ahead_of(first + kBlocksAhead * kBlock);
      char** const found = blocks[first / kBlock % 4];
      const uint64_t* const keys = guesses.keys + first;
      uint64_t* const hashes = guesses.hashes + first;
      uint32_t* const positions = guesses.positions + first;
      for (uint32_t j = 0; j < n; ++j) {
        if (found[j] != nullptr && StoredKey(found[j]) == keys[j]) [[likely]]
          continue;
        if constexpr (kGuided) hashes[j] = HashKey(keys[j]);
        positions[j] = Find(stripe, keys[j], hashes[j]);
        found[j] = positions[j] == Index::kNone ? nullptr : Row(stripe, positions[j]);
      }
      visit(guesses.begin + first, n, found, positions, keys, hashes, ahead);
      if (run.found == nullptr) continue;
      for (uint32_t j = 0; j < n; ++j) run.found[run.At(guesses.begin + first + j)] = positions[j];
    }
  });
}

namespace {

// `bytes` at `offset` of rows to where a call wants those of the run from its `first` on.
void CopyRows(char* const* rows, uint32_t count, uint32_t offset, uint32_t bytes, const Run& run, uint32_t first,
              char* out, const Ahead& ahead) {
  const uint32_t* const order = run.order == nullptr ? nullptr : run.order + first;
  char* const begin = run.order == nullptr ? out + uint64_t{first} * bytes : out;
  ActiveKernels().copy_rows(rows, count, offset, bytes, order, begin, ahead);
}

}  // namespace

// Of each guess the row; without a guess any row will do: it is another key's, or by chance the right one.
// REQUIRES a stripe that has rows.
void Table::FetchGuesses(const Stripe& stripe, const Guesses& guesses, uint32_t bytes, char** rows) const {
  for (uint32_t i = 0; i < guesses.count; ++i) {
    if (guesses.positions[i] >= stripe.rows) guesses.positions[i] = 0;
    rows[i] = Row(stripe, guesses.positions[i]);
  }
  Prefetch({rows, std::min(guesses.count, Guessed::kAhead), bytes});
}

void Table::Read(uint32_t stripe_index, const Run& run, uint32_t offset, uint32_t bytes, char* out,
                 std::vector<uint32_t>* missing) const {
  const Stripe& stripe = all_->stripes[stripe_index];
  if (stripe.rows == 0) {
    for (uint32_t i = run.begin; i < run.end; ++i) {
      std::memset(out + uint64_t{run.At(i)} * bytes, 0, bytes);
      if (run.found != nullptr) run.found[run.At(i)] = Index::kNone;
      if (missing != nullptr) missing->push_back(run.At(i));
    }
    return;
  }
  ForGuesses<false>(stripe, run, [&](const Guesses& guesses) {
    char* rows[kTogether];
    uint16_t others[kTogether];
    Guessed guessed{guesses.keys, std::min(offset + bytes, kPrefetchBytesMax), others};
    FetchGuesses(stripe, guesses, guessed.bytes, rows);
    const uint32_t* const order = run.order == nullptr ? nullptr : run.order + guesses.begin;
    char* const begin = run.order == nullptr ? out + uint64_t{guesses.begin} * bytes : out;
    ActiveKernels().copy_guessed(rows, guesses.count, offset, bytes, order, begin, guessed);
    for (uint32_t k = 0; k < guessed.other_count; ++k) {
      const uint32_t i = others[k];
      const uint32_t at = run.At(guesses.begin + i);
      char* const to = out + uint64_t{at} * bytes;
      guesses.positions[i] = Find(stripe, guesses.keys[i], guesses.hashes[i]);
      if (guesses.positions[i] != Index::kNone) {
        std::memcpy(to, Row(stripe, guesses.positions[i]) + offset, bytes);
        continue;
      }
      std::memset(to, 0, bytes);
      if (missing != nullptr) missing->push_back(at);
    }
    if (run.found == nullptr) return;
    for (uint32_t i = 0; i < guesses.count; ++i) run.found[run.At(guesses.begin + i)] = guesses.positions[i];
  });
}

void Table::ReadState(uint32_t stripe_index, const Run& run, char* out) const {
  const RowLayout& at = layout();
  const uint64_t state_bytes = at.state_bytes();
  std::vector<char> fresh;  // where slots follow from weights: a new row
  if (checked_.optimizer->agree != nullptr) {
    fresh.resize(at.row_bytes);
    ReserveWide();
  }
  ForBlocks(all_->stripes[stripe_index], run, at.row_bytes,
            [&](uint32_t first, uint32_t n, char** rows, const uint32_t*, const uint64_t* keys, const uint64_t*,
                const Ahead& ahead) {
              Prefetch(ahead);
              for (uint32_t j = 0; j < n; ++j) {
                char* state = out + run.At(first + j) * state_bytes;
                const char* slots =
                    rows[j] == nullptr ? reinterpret_cast<const char*>(initial_slots_.data()) : rows[j] + at.slots;
                if (rows[j] == nullptr && !fresh.empty()) {
                  InitialiseStored(keys[j], fresh.data() + at.weights);
                  std::memcpy(fresh.data() + at.slots, initial_slots_.data(), at.slot_bytes);
                  Agree(fresh.data());
                  slots = fresh.data() + at.slots;
                }
                if (at.slot_bytes != 0) std::memcpy(state, slots, at.slot_bytes);
                if (at.step == 0) continue;
                if (rows[j] == nullptr) {
                  std::memset(state + at.slot_bytes, 0, 4);
                } else {
                  std::memcpy(state + at.slot_bytes, rows[j] + at.step, 4);
                }
              }
            });
}

void Table::Contains(uint32_t stripe_index, const Run& run, char* out) const {
  ForBlocks(all_->stripes[stripe_index], run, sizeof(uint64_t),
            [&](uint32_t first, uint32_t n, char** rows, const uint32_t*, const uint64_t*, const uint64_t*,
                const Ahead& ahead) {
              Prefetch(ahead);
              for (uint32_t j = 0; j < n; ++j) out[run.At(first + j)] = rows[j] != nullptr ? 1 : 0;
            });
}

void Table::ReadShows(uint32_t stripe_index, const Run& run, const Moment& moment, char* out) const {
  ForBlocks(all_->stripes[stripe_index], run, layout().row_bytes,
            [&](uint32_t first, uint32_t n, char** rows, const uint32_t*, const uint64_t*, const uint64_t* hashes,
                const Ahead&) {
              for (uint32_t j = 0; j < n; ++j) {
                const Shows shows = rows[j] == nullptr ? Shows{} : ShowsOf(rows[j], moment.Today(hashes[j]));
                std::memcpy(out + uint64_t{run.At(first + j)} * kCountsBytes, &shows, sizeof shows);
              }
            });
}

uint64_t Table::CountMissing(uint32_t stripe_index, const Run& run) const {
  uint64_t missing = 0;
  ForBlocks(
      all_->stripes[stripe_index], run, sizeof(uint64_t),
      [&](uint32_t, uint32_t n, char** rows, const uint32_t*, const uint64_t*, const uint64_t*, const Ahead& ahead) {
        Prefetch(ahead);
        for (uint32_t j = 0; j < n; ++j) missing += rows[j] == nullptr ? 1 : 0;
      });
  return missing;
}

bool Table::AreMissing(uint32_t stripe, const Run& run) const {
  constexpr uint32_t kSample = 16;
  if (run.size() < 2 * kSample) return false;
  Run some = run;
  some.end = run.begin + kSample;
  some.found = nullptr;
  return CountMissing(stripe, some) == kSample;
}

uint64_t Table::BytesForNew(uint64_t rows) const {
  constexpr uint64_t kIndexBytesPerRow = 14;  // at most: index.h
  return rows * (layout().row_bytes + kIndexBytesPerRow);
}

Table::Room::Room(Table* table, uint32_t stripe_index, const Run& run) : table_(table), stripe_(stripe_index) {
  table->ReserveWide();
  Stripe& stripe = table->all_->stripes[stripe_index];
  const uint64_t rows = uint64_t{stripe.rows} + run.size();
  if (rows >= stripe.index.positions_max()) {
    throw StatusError("ResourceExhausted", Format("table '%s': stripe %u has %u rows, and cannot hold %u more",
                                                  table->name().c_str(), stripe_index, stripe.rows, run.size()));
  }
  stripe.index.Advance(run.size() / 4 + 1, HashAt{*table, stripe});
  // Growing an index for keys that turn out to be there already would waste memory: count first.
  uint64_t new_entries = run.size();
  // (A small stripe's index is not worth a count.)
  constexpr uint64_t kSmall = 4096;
  if (rows > kSmall && stripe.index.MustGrow(new_entries)) {
    new_entries = table->CountMissing(stripe_index, run);
  }
  stripe.index.Reserve(new_entries, HashAt{*table, stripe});
  const uint64_t words = (rows + 63) / 64;
  if (stripe.dirty.size() < words) stripe.dirty.resize(words);
  const uint64_t slabs = (rows + table->slab_mask_) >> table->slab_shift_;
  slabs_before_ = stripe.slabs.size();
  slabs_reserved_ = slabs > slabs_before_ ? slabs - slabs_before_ : 0;
  if (slabs_reserved_ == 0) return;
  if (stripe.slabs.capacity() < slabs) stripe.slabs.reserve(std::max<uint64_t>(slabs, 2 * slabs_before_));
  table->all_->arena.Reserve(slabs_reserved_);
}

Table::Room::~Room() {
  table_->all_->stripes[stripe_].index.FreeEmptied();
  if (slabs_reserved_ == 0) return;
  const uint64_t taken = table_->all_->stripes[stripe_].slabs.size() - slabs_before_;
  table_->all_->arena.Unreserve(slabs_reserved_ - taken);
}

void Table::FillRows(const uint64_t* keys, char* const* rows, uint32_t count, uint32_t offset) const {
  const FillKernel fill = fill_ == nullptr ? nullptr : ActiveKernels().*fill_;
  char* weights[kBlock];
  uint64_t bases[kBlock];
  for (uint32_t first = 0; first < count; first += kBlock) {
    const uint32_t n = std::min(kBlock, count - first);
    for (uint32_t j = 0; j < n; ++j) {
      weights[j] = rows[first + j] + offset;
      bases[j] = HashKey(keys[first + j] ^ initial_base_);
      if (fill == nullptr) std::memset(weights[j], 0, wire_bytes());
    }
    if (fill != nullptr) fill({weights, bases, n, dim(), fill_a_, fill_b_});
  }
}

// REQUIRES: room, the key is absent, and an Added around it. All but the key is yet to be filled in.
char* Table::Append(Stripe& stripe, uint64_t hash, uint64_t key) {
  const uint32_t position = stripe.rows++;
  if (position >> slab_shift_ == stripe.slabs.size()) stripe.slabs.push_back(all_->arena.TakeSlab());
  char* const row = Row(stripe, position);
  std::memcpy(row, &key, sizeof key);
  stripe.index.Insert(hash, position, HashAt{*this, stripe});
  return row;
}

void Table::InsertMissing(Stripe& stripe, uint32_t count, char** rows, uint32_t* positions, const uint64_t* keys,
                          const uint64_t* hashes) {
  char* made[kBlock];
  uint64_t made_keys[kBlock];
  uint32_t n = 0;
  for (uint32_t j = 0; j < count; ++j) {
    if (rows[j] != nullptr) continue;
    positions[j] = Find(stripe, keys[j], hashes[j]);
    if (positions[j] != Index::kNone) {
      rows[j] = Row(stripe, positions[j]);
      continue;
    }
    rows[j] = Append(stripe, hashes[j], keys[j]);
    positions[j] = stripe.rows - 1;
    made[n] = rows[j];
    made_keys[n++] = keys[j];
  }
  if (n == 0) return;
  const RowLayout& at = layout();
  if (!narrow()) {
    FillRows(made_keys, made, n, at.weights);
  } else {
    for (uint32_t j = 0; j < n; ++j) InitialiseStored(made_keys[j], made[j] + at.weights);
  }
  for (uint32_t j = 0; j < n; ++j) {
    if (at.step != 0) std::memset(made[j] + at.step, 0, 4);
    if (at.slot_bytes != 0) std::memcpy(made[j] + at.slots, initial_slots_.data(), at.slot_bytes);
    if (checked_.optimizer->agree != nullptr) Agree(made[j]);
    if (evicts_) Forget(made[j]);
  }
}

uint32_t Table::Insert(Stripe& stripe, uint64_t key, uint64_t hash) {
  char* row = nullptr;
  uint32_t position;
  InsertMissing(stripe, 1, &row, &position, &key, &hash);
  return position;
}

void Table::Agree(char* row) const {
  Update update = update_;
  update.learning_rate = learning_rate();
  if (narrow()) return AgreeNarrow(update, row);
  checked_.optimizer->agree(update, row);
}

void Table::Touch(Stripe& stripe, uint32_t position, char* row) {
  std::memcpy(row + RowLayout::kVersion, &stripe.version, sizeof stripe.version);
  stripe.dirty[position >> 6] |= uint64_t{1} << (position & 63);
}

// The dirty bits that many rows will touch, in order, rather than one by one as the rows come.
void Table::FetchDirty(const Stripe& stripe, uint32_t rows) {
  constexpr size_t kWords = kCacheLine / sizeof(uint64_t);
  if (rows < stripe.dirty.size() / kWords) return;
  for (size_t word = 0; word < stripe.dirty.size(); word += kWords) __builtin_prefetch(&stripe.dirty[word], 1, 2);
}

void Table::Create(uint32_t stripe_index, const Run& run, const Moment& moment, char* out) {
  Stripe& stripe = all_->stripes[stripe_index];
  const Added added(all_.get(), stripe);
  stripe.RaiseVersion();
  const RowLayout& at = layout();
  ForBlocks(stripe, run, sizeof(uint64_t),
            [&](uint32_t first, uint32_t n, char** rows, uint32_t* positions, const uint64_t* keys,
                const uint64_t* hashes, const Ahead& ahead) {
              bool made[kBlock];
              for (uint32_t j = 0; j < n; ++j) made[j] = rows[j] == nullptr;
              InsertMissing(stripe, n, rows, positions, keys, hashes);
              for (uint32_t j = 0; j < n; ++j) {
                if (!made[j]) continue;
                if (evicts_) See(rows[j], moment, hashes[j], 0, {});
                Touch(stripe, positions[j], rows[j]);
              }
              CopyRows(rows, n, at.weights, at.weight_bytes, run, first, out, ahead);
            });
}

float Table::RateAt(uint64_t step) const {
  if (!schedule_.active()) return learning_rate();
  return static_cast<float>(learning_rate() * FactorAt(schedule_, step));
}

void Table::ApplyGuesses(Stripe& stripe, const Run& run, const Guesses& guesses, const char* gradients,
                         UpdateKernel kernel, Update update) {
  char* rows[kTogether];
  const char* given[kTogether];
  uint16_t others[kTogether];
  Guessed guessed{guesses.keys, std::min(layout().row_bytes, kPrefetchBytesMax), others};
  guessed.positions = guesses.positions;
  guessed.dirty = stripe.dirty.data();
  guessed.clean_version = stripe.clean_version;
  guessed.version = stripe.version;
  const uint64_t gradient_bytes = wire_bytes();
  for (uint32_t i = 0; i < guesses.count; ++i) given[i] = gradients + run.At(guesses.begin + i) * gradient_bytes;
  if (stripe.rows > 0) {
    FetchGuesses(stripe, guesses, guessed.bytes, rows);
    update.rows = rows;
    update.gradients = given;
    update.count = guesses.count;
    update.guessed = &guessed;
    kernel(update);
    update.guessed = nullptr;
  } else {
    std::iota(others, others + guesses.count, uint16_t{0});
    guessed.other_count = guesses.count;
  }
  for (uint32_t begin = 0; begin < guessed.other_count; begin += kBlock) {
    const uint32_t n = std::min(kBlock, guessed.other_count - begin);
    char* found[kBlock] = {};
    uint32_t positions[kBlock];
    uint64_t keys[kBlock];
    uint64_t hashes[kBlock];
    const char* block[kBlock];
    for (uint32_t j = 0; j < n; ++j) {
      const uint32_t i = others[begin + j];
      keys[j] = guesses.keys[i];
      hashes[j] = HashKey(keys[j]);
      block[j] = given[i];
    }
    InsertMissing(stripe, n, found, positions, keys, hashes);
    for (uint32_t j = 0; j < n; ++j) Touch(stripe, positions[j], found[j]);
    update.rows = found;
    update.gradients = block;
    update.count = n;
    kernel(update);
  }
}

uint32_t Table::Apply(uint32_t stripe_index, const Run& run, const char* gradients, uint64_t step, const Moment& moment,
                      Table* sightings) {
  Stripe& stripe = all_->stripes[stripe_index];
  const Added added(all_.get(), stripe);
  stripe.RaiseVersion();
  const RowLayout& at = layout();
  const UpdateKernel kernel =
      is_days_ ? &RaiseDays : checked_.optimizer->kernel(ActiveKernels(), checked_.element_type);
  Update update = update_;
  update.learning_rate = RateAt(step);
  SetDecay(update);
  const bool beside = Beside(update);
  update.now = static_cast<uint32_t>(std::min<uint64_t>(step, UINT32_MAX - 1) + 1);
  FetchDirty(stripe, run.size());
  const uint64_t weight_bytes = wire_bytes();
  const bool drops = checked_.push_missing == PushMissing::kDrop || !admits_all();
  if (sightings != nullptr) sightings->all_->stripes[stripe_index].RaiseVersion();
  uint32_t dropped = 0;
  const auto apply = [&](uint32_t first, uint32_t n, char** rows, uint32_t* positions, const uint64_t* keys,
                         const uint64_t* hashes, const Ahead& ahead) {
    const char* block[kBlock];
    if (run.order == nullptr) {
      const char* next = gradients + uint64_t{first} * weight_bytes;
      for (uint32_t j = 0; j < n; ++j, next += weight_bytes) block[j] = next;
    } else {
      for (uint32_t j = 0; j < n; ++j) block[j] = gradients + uint64_t{run.order[first + j]} * weight_bytes;
    }
    uint64_t kept_keys[kBlock];
    uint64_t kept_hashes[kBlock];
    if (drops) [[unlikely]] {
      uint32_t kept = 0;
      for (uint32_t j = 0; j < n; ++j) {
        // A key that is admitted now keeps its null, and gets its row below.
        if (rows[j] == nullptr && !Admits(stripe_index, keys[j], hashes[j], step, sightings)) {
          continue;
        }
        rows[kept] = rows[j];
        positions[kept] = positions[j];
        block[kept] = block[j];
        kept_keys[kept] = keys[j];
        kept_hashes[kept] = hashes[j];
        ++kept;
      }
      dropped += n - kept;
      n = kept;
      keys = kept_keys;
      hashes = kept_hashes;
    }
    if (stripe.cutting) [[unlikely]] {
      for (uint32_t j = 0; j < n; ++j) {
        if (rows[j] != nullptr) SaveImage(stripe, positions[j]);
      }
    }
    bool missing = false;
    for (uint32_t j = 0; j < n; ++j) missing |= rows[j] == nullptr;
    if (missing) [[unlikely]]
      InsertMissing(stripe, n, rows, positions, keys, hashes);
    if (evicts_) [[unlikely]] {
      for (uint32_t j = 0; j < n; ++j) {
        Shows shows{1, 0};
        if (moment.counts != nullptr) {
          const auto i = static_cast<uint64_t>(block[j] - gradients) / weight_bytes;
          std::memcpy(&shows, moment.counts + i * kCountsBytes, sizeof shows);
        }
        See(rows[j], moment, hashes[j], 1, shows);
      }
    }
    update.rows = rows;
    update.gradients = block;
    update.count = n;
    update.ahead = ahead;
    for (uint32_t j = 0; j < n; ++j) Touch(stripe, positions[j], rows[j]);
    if (narrow()) {
      UpdateNarrow(kernel, update);
    } else if (beside) {
      UpdateBeside(kernel, update);
    } else {
      kernel(update);
    }
  };
  if (narrow() || beside || is_days_ || drops || evicts_ || stripe.cutting) {
    run.guesses != nullptr ? ForBlocks<true>(stripe, run, at.row_bytes, apply)
                           : ForBlocks<false>(stripe, run, at.row_bytes, apply);
    return dropped;
  }
  // Nothing but the rule: its kernel looks at the rows by itself.
  const auto apply_guesses = [&](const Guesses& guesses) {
    ApplyGuesses(stripe, run, guesses, gradients, kernel, update);
  };
  run.guesses != nullptr ? ForGuesses<true>(stripe, run, apply_guesses) : ForGuesses<false>(stripe, run, apply_guesses);
  return dropped;
}

void Table::Assign(uint32_t stripe_index, const Run& run, const char* new_rows, const Moment& moment) {
  Stripe& stripe = all_->stripes[stripe_index];
  const Added added(all_.get(), stripe);
  stripe.RaiseVersion();
  const RowLayout& at = layout();
  ForBlocks(stripe, run, at.row_bytes,
            [&](uint32_t first, uint32_t n, char** rows, uint32_t* positions, const uint64_t* keys,
                const uint64_t* hashes, const Ahead& ahead) {
              Prefetch(ahead);
              for (uint32_t j = 0; j < n; ++j) {
                if (rows[j] == nullptr) {
                  positions[j] = Insert(stripe, keys[j], hashes[j]);
                  rows[j] = Row(stripe, positions[j]);
                } else if (stripe.cutting) {
                  SaveImage(stripe, positions[j]);
                }
                const char* const given = new_rows + uint64_t{run.At(first + j)} * wire_bytes();
                if (narrow()) {
                  NarrowToNearest(checked_.element_type, given, dim(), rows[j] + at.weights);
                } else {
                  std::memcpy(rows[j] + at.weights, given, at.weight_bytes);
                }
                if (checked_.optimizer->agree != nullptr) Agree(rows[j]);
                if (evicts_) See(rows[j], moment, hashes[j], 0, {});
                Touch(stripe, positions[j], rows[j]);
              }
            });
}

void Table::Remove(Stripe& stripe, uint32_t position, uint64_t key, uint64_t hash) {
  stripe.index.Erase(hash, position);
  const uint32_t last = --stripe.rows;
  if (stripe.cutting) {
    SaveImage(stripe, position);
    SaveImage(stripe, last);
  }
  const auto is_dirty = [&](uint32_t p) { return (stripe.dirty[p >> 6] >> (p & 63) & 1) != 0; };
  const uint64_t bit = uint64_t{1} << (position & 63);
  if (last != position) {
    const char* moved = Row(stripe, last);
    stripe.index.Reposition(HashKey(StoredKey(moved)), last, position);
    std::memcpy(Row(stripe, position), moved, layout().row_bytes);
    stripe.dirty[position >> 6] =
        is_dirty(last) ? stripe.dirty[position >> 6] | bit : stripe.dirty[position >> 6] & ~bit;
  }
  stripe.dirty[last >> 6] &= ~(uint64_t{1} << (last & 63));
  if (stripe.deltas) {
    stripe.tombstones.push_back(key);
    // Keys that come and go are kept once.
    if (stripe.tombstones.size() >= stripe.tombstones_wanted) {
      SortUnique(&stripe.tombstones);
      stripe.tombstones_wanted = std::max(kTombstones, 2 * stripe.tombstones.size());
    }
  }
  // One slab is kept beyond the last row, so that a row that comes and goes does not map and unmap each time.
  const uint64_t wanted = ((uint64_t{stripe.rows} + slab_mask_) >> slab_shift_) + 1;
  while (stripe.slabs.size() > wanted) {
    all_->arena.GiveBack(stripe.slabs.back());
    stripe.slabs.pop_back();
  }
  all_->count.fetch_sub(1, std::memory_order_relaxed);
}

uint64_t Table::Delete(uint32_t stripe_index, const Run& run) {
  Stripe& stripe = all_->stripes[stripe_index];
  stripe.RaiseVersion();
  uint64_t removed = 0;
  // One by one: a removal moves rows, so nothing looked up before it holds.
  for (uint32_t i = run.begin; i < run.end; ++i) {
    const uint64_t key = LoadKey(run.keys, run.At(i));
    const uint64_t hash = HashKey(key);
    const uint32_t position = Find(stripe, key, hash);
    if (position == Index::kNone) continue;
    Remove(stripe, position, key, hash);
    ++removed;
  }
  return removed;
}

uint64_t Table::KeyAt(uint32_t stripe, uint32_t position) const {
  return StoredKey(Row(all_->stripes[stripe], position));
}

void Table::CopyWeights(uint32_t stripe, uint32_t position, char* out) const {
  const char* const weights = Row(all_->stripes[stripe], position) + layout().weights;
  if (narrow()) return Widen(checked_.element_type, weights, dim(), out);
  std::memcpy(out, weights, layout().weight_bytes);
}

void Table::BeginCut(uint32_t stripe_index, bool full) {
  Stripe& stripe = all_->stripes[stripe_index];
  const size_t words = (uint64_t{stripe.rows} + 63) / 64;
  std::vector<uint64_t> clean(stripe.dirty.size());
  stripe.deleted.clear();
  if (full) {
    std::fill_n(stripe.dirty.begin(), words, ~uint64_t{0});
    if (stripe.rows % 64 != 0) stripe.dirty[words - 1] = (uint64_t{1} << stripe.rows % 64) - 1;
    stripe.tombstones.clear();
  } else {
    stripe.deleted.swap(stripe.tombstones);
  }
  stripe.pending.swap(stripe.dirty);
  stripe.dirty.swap(clean);
  stripe.BeginClean();
  stripe.pending.resize(words);
  stripe.pending_rows = 0;
  for (const uint64_t word : stripe.pending) stripe.pending_rows += static_cast<uint64_t>(__builtin_popcountll(word));
  stripe.pending_word = 0;
  stripe.deltas = true;
  stripe.cutting = true;
}

void Table::ReserveImages(uint32_t stripe_index, uint64_t rows) {
  ReserveBeside();
  ReserveWide();
  Stripe& stripe = all_->stripes[stripe_index];
  if (!stripe.cutting) return;
  const uint64_t wanted = stripe.saved.size() + std::min(rows, stripe.pending_rows) * layout().row_bytes;
  const size_t before = stripe.saved.capacity();
  if (wanted <= before) return;
  stripe.saved.reserve(std::max<uint64_t>(wanted, 2 * before));
  bytes_total_->fetch_add(stripe.saved.capacity() - before, std::memory_order_relaxed);
}

void Table::SaveImage(Stripe& stripe, uint32_t position) {
  const size_t word = position >> 6;
  const uint64_t bit = uint64_t{1} << (position & 63);
  if (word >= stripe.pending.size() || (stripe.pending[word] & bit) == 0) return;
  stripe.pending[word] &= ~bit;
  --stripe.pending_rows;
  const char* const row = Row(stripe, position);
  stripe.saved.insert(stripe.saved.end(), row, row + layout().row_bytes);
}

uint32_t Table::CopyCut(uint32_t stripe_index, char* out, uint32_t rows_max) {
  Stripe& stripe = all_->stripes[stripe_index];
  const uint64_t row_bytes = layout().row_bytes;
  uint32_t count = 0;
  while (!stripe.saved.empty() && count < rows_max) {
    const uint64_t n = std::min<uint64_t>(rows_max - count, stripe.saved.size() / row_bytes);
    const uint64_t bytes = n * row_bytes;
    std::memcpy(out + count * row_bytes, stripe.saved.data() + stripe.saved.size() - bytes, bytes);
    stripe.saved.resize(stripe.saved.size() - bytes);
    count += static_cast<uint32_t>(n);
  }
  for (; stripe.pending_word < stripe.pending.size() && count < rows_max; ++stripe.pending_word) {
    uint64_t& bits = stripe.pending[stripe.pending_word];
    for (; bits != 0; bits &= bits - 1) {
      if (count == rows_max) return count;
      const auto position =
          static_cast<uint32_t>(stripe.pending_word * 64 + static_cast<uint32_t>(__builtin_ctzll(bits)));
      std::memcpy(out + count * row_bytes, Row(stripe, position), row_bytes);
      ++count;
      --stripe.pending_rows;
    }
  }
  return count;
}

std::vector<uint64_t> Table::TakeDeleted(uint32_t stripe_index) {
  std::vector<uint64_t> deleted = std::move(all_->stripes[stripe_index].deleted);
  all_->stripes[stripe_index].deleted.clear();
  SortUnique(&deleted);
  return deleted;
}

void Table::EndCut(uint32_t stripe_index) {
  Stripe& stripe = all_->stripes[stripe_index];
  bytes_total_->fetch_sub(stripe.saved.capacity(), std::memory_order_relaxed);
  std::vector<char>().swap(stripe.saved);
  std::vector<uint64_t>().swap(stripe.pending);
  std::vector<uint64_t>().swap(stripe.deleted);
  stripe.pending_rows = 0;
  stripe.cutting = false;
}

}  // namespace tablebay
