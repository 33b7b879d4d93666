// A sparse table: rows of weights and optimizer slots by 64-bit key.
//
// The table is 64 stripes; a key belongs to one (hash.h). A stripe's rows lie at positions 0 .. rows-1 without
// holes: a deletion moves the last row into the gap, so that emptied slabs go back to the system, and only the
// index knows positions. Rows are relocatable: no pointer into a row outlives the stripe's lock.
//
// Thread safety: the table has no locks of its own. Every method that names a stripe REQUIRES that stripe's lock,
// shared for const methods, exclusive for others; the store that holds the table keeps one lock for each stripe,
// over all its tables, so that a step over several tables is one change of a stripe.
#pragma once

#include <array>
#include <atomic>
#include <bitset>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "tablebay/arena.h"
#include "tablebay/hash.h"
#include "tablebay/index.h"
#include "tablebay/options.h"

namespace tablebay {

// A run of keys of one stripe: indices begin..end-1, of `order` if given, else of the arrays themselves.
struct Run {
  const char* keys;       // little-endian u64, any alignment
  const uint32_t* order;  // null: the keys already lie in stripe order
  uint32_t begin;
  uint32_t end;
  // By the index of the key: where Read and Create put the position of its row, and where Apply looks first.
  uint32_t* found = nullptr;
  const uint32_t* guesses = nullptr;
  uint32_t At(uint32_t i) const { return order == nullptr ? i : order[i]; }
  uint32_t size() const { return end - begin; }
};

inline uint64_t StoredKey(const char* row) { return LoadKey(row, 0); }

class Table {
 public:
  Table(const CheckedOptions& checked, uint32_t id, std::atomic<uint64_t>* bytes_total);
  Table(const Table&) = delete;
  Table& operator=(const Table&) = delete;

  const CheckedOptions& checked() const { return checked_; }
  const std::string& name() const { return checked_.options.name; }
  const RowLayout& layout() const { return checked_.layout; }
  uint32_t dim() const { return checked_.options.dim; }
  uint32_t wire_bytes() const { return checked_.wire_bytes; }
  bool narrow() const { return IsNarrow(checked_.element_type); }
  uint32_t id() const { return id_; }
  uint64_t rows() const { return all_->count.load(std::memory_order_relaxed); }
  uint64_t bytes() const;
  float learning_rate() const { return learning_rate_.load(std::memory_order_relaxed); }
  void set_learning_rate(double value);  // throws StatusError(BadRequest)
  float weight_decay() const { return weight_decay_.load(std::memory_order_relaxed); }
  void set_weight_decay(double value);  // throws StatusError(BadRequest)

  // Copies `bytes` at `offset` of each key's row to out + i * bytes, i the key's index in the run's arrays.
  // A missing key reads as zeros, and its index is appended to `missing` unless that is null.
  void Read(uint32_t stripe, const Run& run, uint32_t offset, uint32_t bytes, char* out,
            std::vector<uint32_t>* missing) const;
  // Optimizer slots, then the step count where there is one; a missing key reads as a new row's state.
  void ReadState(uint32_t stripe, const Run& run, char* out) const;
  void Contains(uint32_t stripe, const Run& run, char* out) const;
  // Shows for each key; none for one without a row. REQUIRES a table that counts them.
  void ReadShows(uint32_t stripe, const Run& run, const Moment& moment, char* out) const;
  uint64_t CountMissing(uint32_t stripe, const Run& run) const;
  // Whether all of a few of many keys are missing, so that the others are likely to be.
  bool AreMissing(uint32_t stripe, const Run& run) const;

  // Room for the rows that a run may create; while it lives, Create, Apply and Assign of that run cannot fail.
  class Room {
   public:
    Room(Table* table, uint32_t stripe, const Run& run);  // throws StatusError(ResourceExhausted), nothing changed
    ~Room();
    Room(const Room&) = delete;
    Room& operator=(const Room&) = delete;

   private:
    Table* table_;
    uint32_t stripe_;
    uint64_t slabs_before_;
    uint64_t slabs_reserved_;
  };
  // About what a run takes from the system if all its keys are new.
  uint64_t BytesForNew(uint64_t rows) const;

  // All four: REQUIRES Room for the run, but for Apply where the table drops keys without a row. A key that repeats is
  // handled in order, as often as it stands there.
  // out: as Read's, of the weights.
  void Create(uint32_t stripe, const Run& run, const Moment& moment, char* out);
  // Applies the optimizer; gradient of the key at index i lies at gradients + i * wire_bytes. step: of the client
  // that pushes, by which a schedule of the learning rate goes. Returns
  // how many keys had no row and, where the table drops those or does not admit them yet, were passed over.
  // sightings: where keys without a row are counted, null in a table that admits all; REQUIRES Room and ReserveImages
  // for the run there too.
  uint32_t Apply(uint32_t stripe, const Run& run, const char* gradients, uint64_t step, const Moment& moment,
                 Table* sightings);
  // The step of a push without a client.
  uint64_t own_steps() const { return own_steps_.load(std::memory_order_relaxed); }
  void GoOnAt(uint64_t step) { own_steps_.store(step, std::memory_order_relaxed); }
  uint64_t NextOwnStep() { return own_steps_.fetch_add(1, std::memory_order_relaxed); }
  // Counts a push of the key; whether it is the N-th, and then forgets the key. REQUIRES a table of sightings.
  bool Sight(uint32_t stripe, uint64_t key, uint64_t hash, uint32_t admit_at);
  // The same in a filter, which forgets nothing. blocks: rows of a shard.
  bool SightInFilter(uint32_t stripe, uint64_t hash, uint32_t admit_at, uint64_t blocks);
  // Whether a push makes a row of any key that has none, unless pushMissing is Drop.
  bool admits_all() const { return checked_.options.admit_at == 1 && checked_.options.admit_probability >= 1; }
  // Replaces weights; slots stay, but for those that follow from weights.
  void Assign(uint32_t stripe, const Run& run, const char* rows, const Moment& moment);
  // Returns the number of rows removed.
  uint64_t Delete(uint32_t stripe, const Run& run);

  // -- eviction --

  // Looks at up to kSliceRows rows before position *left, which goes down to 0, and removes those that leave.
  // REQUIRES ReserveImages for twice as many, and the sweep mutex.
  Slice Evict(uint32_t stripe, uint32_t* left, const Moment& moment, Surplus* surplus);
  // Counts some rows before position `left` for a budget; the position before which are those to count yet.
  uint32_t CountSurplus(uint32_t stripe, uint32_t left, const Moment& moment, Surplus* surplus) const;
  // Of one sweep at a time; taken before a stripe's lock.
  std::mutex& sweep_mutex() { return sweep_mutex_; }
  Surplus& surplus() { return surplus_; }
  const Events& events() const { return events_; }
  uint64_t evicted(Reason reason) const {
    return evicted_[static_cast<size_t>(reason)].load(std::memory_order_relaxed);
  }

  uint32_t StripeRows(uint32_t stripe) const { return all_->stripes[stripe].rows; }
  uint64_t BucketsPassed(uint32_t stripe) const { return all_->stripes[stripe].index.BucketsPassed(); }
  // Key and weights of the row at `position`.
  uint64_t KeyAt(uint32_t stripe, uint32_t position) const;
  void CopyWeights(uint32_t stripe, uint32_t position, char* out) const;

  // -- cuts: what a stripe held at one moment, copied out while it goes on changing --

  // From now on the stripe's rows are kept as they are now until CopyCut has given them: all of them, or those that
  // were created or changed since the cut before. A row that changes first is saved first.
  void BeginCut(uint32_t stripe, bool full);
  // Memory for the rows that a run of `rows` keys may have saved; REQUIRED before Apply, Assign and Delete.
  // (A deletion moves a second row.) Throws std::bad_alloc, with nothing changed.
  void ReserveImages(uint32_t stripe, uint64_t rows);
  // Up to `rows_max` rows of the cut; 0: there are no more.
  uint32_t CopyCut(uint32_t stripe, char* out, uint32_t rows_max);
  // Keys removed since the cut before; some may have been made anew since.
  std::vector<uint64_t> TakeDeleted(uint32_t stripe);
  void EndCut(uint32_t stripe);

  // -- loading --

  // Index room for so many rows more, spread evenly: without it the index grows, and moves its entries, as they come.
  // Throws StatusError(ResourceExhausted).
  void ReserveRows(uint64_t rows);

  // Adds `count` rows that lie at `rows` as a checkpoint has them, where `owned` has their shard; how many. A key
  // that is there already is replaced with `replace`, else refused: StatusError(CheckpointInvalid).
  // weights_only: slots and step counts are a new row's. layout: of the rows given. stripe_locks: of each stripe, the
  // lock under which its rows are added.
  uint64_t Load(const char* rows, uint32_t count, const RowLayout& layout, const std::bitset<kShards>& owned,
                bool replace, bool weights_only, uint32_t now, std::mutex* stripe_locks);
  // Rows of both change places. REQUIRES every stripe's lock, and equal layouts.
  void SwapRows(Table& other);
  // What was loaded is what the checkpoint before the next cut has: deletions are noted from here on.
  void BeginDeltas();

  // The weights a new row of `key` begins with: as calls have them, and as rows have them.
  void Initialise(uint64_t key, char* weights) const;
  void InitialiseStored(uint64_t key, char* weights) const;
  // Memory for rows of narrow weights to be worked on in; REQUIRED by what makes or changes rows.
  void ReserveWide() const;
  // What Read gave of `count` rows' weights, which lies at the end of their place, becomes what calls have.
  void WidenInPlace(char* rows, uint64_t count) const;

 private:
  struct Stripe {
    Stripe(uint32_t number, std::atomic<uint64_t>* bytes_total) : index(number, 3, bytes_total) {}
    Index index;
    std::vector<char*> slabs;
    std::vector<uint64_t> dirty;  // a bit for each position
    std::vector<uint64_t> tombstones;
    size_t tombstones_wanted = 0;  // of them before repeats are taken out
    uint32_t rows = 0;
    uint32_t version = 0;  // raised by each change; a row keeps the version of its last
    // A row of a later version is dirty, so that a push need not say so. Versions begin anew after 2^32 changes; from
    // then on none is later.
    uint32_t clean_version = 0;
    bool deltas = false;  // whether deletions are noted
    // Of the cut under way.
    bool cutting = false;
    std::vector<uint64_t> pending;  // a bit for each position whose row is as it was cut, and not copied yet
    uint64_t pending_rows = 0;
    size_t pending_word = 0;  // no bit is set before it
    std::vector<char> saved;  // rows as they were cut, which have changed since
    std::vector<uint64_t> deleted;

    void RaiseVersion() {
      if (++version == 0) clean_version = UINT32_MAX;
    }
    // From now on rows are dirty that change later.
    void BeginClean() {
      if (clean_version != UINT32_MAX) clean_version = version;
    }
  };
  // What SwapRows swaps.
  struct Rows {
    Rows(uint32_t row_bytes, std::atomic<uint64_t>* bytes_total);
    Arena arena;
    std::deque<Stripe> stripes;  // a deque, since a stripe's index cannot move
    std::atomic<uint64_t> count{0};
  };

  char* Row(const Stripe& stripe, uint32_t position) const {
    return stripe.slabs[position >> slab_shift_] +
           static_cast<uint64_t>(position & slab_mask_) * checked_.layout.row_bytes;
  }
  uint32_t Find(const Stripe& stripe, uint64_t key, uint64_t hash) const;
  uint32_t Insert(Stripe& stripe, uint64_t key, uint64_t hash);
  // Makes the rows of a block that are null. Of a key that repeats the second finds the row of the first.
  void InsertMissing(Stripe& stripe, uint32_t count, char** rows, uint32_t* positions, const uint64_t* keys,
                     const uint64_t* hashes);
  void Remove(Stripe& stripe, uint32_t position, uint64_t key, uint64_t hash);
  static void RaiseDays(const Update& update);
  static void FetchDirty(const Stripe& stripe, uint32_t rows);
  void Agree(char* row) const;
  void ChooseFill();
  float RateAt(uint64_t step) const;
  void SetOwnSteps(const char* row);
  bool Admits(uint32_t stripe, uint64_t key, uint64_t hash, uint64_t step, Table* sightings) const;
  // As the initializer says, in float32: the weights of new rows, at rows[j] + offset.
  void FillRows(const uint64_t* keys, char* const* rows, uint32_t count, uint32_t offset) const;
  void UpdateNarrow(UpdateKernel rule, const Update& update) const;
  void AgreeNarrow(const Update& update, char* row) const;
  void ReserveBeside() const;
  void SetDecay(Update& update) const;
  bool Beside(const Update& update) const;
  void UpdateBeside(UpdateKernel rule, Update update) const;
  void Touch(Stripe& stripe, uint32_t position, char* row);
  // What eviction asks of a row, as it is after so many pushes more; as of a row that was never seen.
  void See(char* row, const Moment& moment, uint64_t hash, uint32_t pushes, const Shows& shows) const;
  void SeeLoaded(char* row, uint32_t now) const;
  void Forget(char* row) const;
  bool Leaves(const char* row, const Moment& moment, Reason* reason) const;
  Shows ShowsOf(const char* row, uint32_t today) const;
  bool LeavesForBudget(const char* row, Surplus* surplus, Reason* reason) const;
  bool InGrace(const char* row, uint32_t now) const;
  void Date(Stripe& stripe, uint32_t position, char* row, const Moment& moment);
  uint32_t SurplusBucket(const char* row, uint32_t now) const;
  double Norm(const char* row) const;
  char* Append(Stripe& stripe, uint64_t hash, uint64_t key);
  void SaveImage(Stripe& stripe, uint32_t position);
  struct HashAt;
  // Counts the rows that a stripe has got meanwhile: once, since threads share the count.
  class Added {
   public:
    Added(Rows* all, const Stripe& stripe) : all_(all), stripe_(stripe), before_(stripe.rows) {}
    ~Added() { all_->count.fetch_add(stripe_.rows - before_, std::memory_order_relaxed); }
    Added(const Added&) = delete;
    Added& operator=(const Added&) = delete;

   private:
    Rows* const all_;
    const Stripe& stripe_;
    const uint32_t before_;
  };

  // Some of a run's keys, and where their rows are likely to be; kNone where there seems to be none.
  struct Guesses {
    uint32_t begin;  // of the run's indices
    uint32_t count;
    const uint64_t* keys;
    uint64_t* hashes;  // with a run that guesses itself, undefined unless the table evicts or admits
    uint32_t* positions;
  };
  template <bool kOrdered, bool kGuided, class Visit>
  void VisitGuesses(const Stripe& stripe, const Run& run, Visit&& visit) const;
  template <bool kGuided, class Visit>
  void ForGuesses(const Stripe& stripe, const Run& run, Visit&& visit) const;
  // Calls visit(first, count, rows, positions, keys, hashes, ahead) for blocks of the run; a missing key's row is
  // null. `visit` fetches the rows of `ahead`. kGuided: by the run's guesses.
  template <bool kGuided = false, class Visit>
  void ForBlocks(const Stripe& stripe, const Run& run, uint32_t row_bytes_wanted, Visit&& visit) const;
  void FetchGuesses(const Stripe& stripe, const Guesses& guesses, uint32_t bytes, char** rows) const;
  void ApplyGuesses(Stripe& stripe, const Run& run, const Guesses& guesses, const char* gradients, UpdateKernel kernel,
                    Update update);

  const CheckedOptions checked_;
  const uint32_t id_;
  uint64_t initial_base_;                 // of (seed, table)
  FillKernel Kernels::* fill_ = nullptr;  // null: zeros
  float fill_a_ = 0;
  float fill_b_ = 0;
  std::vector<float> initial_slots_;
  std::atomic<uint64_t>* const bytes_total_;
  std::unique_ptr<Rows> all_;
  const uint32_t slab_shift_;
  const uint32_t slab_mask_;
  std::atomic<float> learning_rate_;
  std::atomic<float> weight_decay_;
  const Schedule schedule_;
  std::atomic<uint64_t> own_steps_{0};
  std::array<std::atomic<uint64_t>, kReasons> evicted_{};
  std::mutex sweep_mutex_;
  Surplus surplus_;
  Events events_;
  const bool evicts_;
  const bool is_days_;
  AdamClock clock_ = AdamClock::kRow;
  bool may_condition_ = false;  // gradients are changed before the rule, or may be once weight_decay is set
  bool decoupled_ = false;
  Update update_{};  // all but the rows, the gradients, the learning rate and the weight decay
  std::vector<float> corrections1_;
  std::vector<float> corrections2_;
};

// For index entries that move.
struct Table::HashAt {
  const Table& table;
  const Stripe& stripe;
  uint64_t operator()(uint32_t position) const { return HashKey(StoredKey(table.Row(stripe, position))); }
  void Prefetch(uint32_t position) const { __builtin_prefetch(table.Row(stripe, position)); }
};

}  // namespace tablebay
