// The tables of one server, the steps its clients have had applied, and the locks over both.
//
// One lock for each of the 64 stripes of the key space, over all tables: a push takes a stripe, asks the step
// windows of the stripe's shards, applies the keys of all its tables and marks the windows, so that rows and marks
// change as one. A thread takes one stripe at a time, in ascending order; idle ones help with large calls (crew.h). A
// push is checked whole before its first row changes; on each shard it is then all or nothing.
// Thread safety: every method may be called from any thread.
#pragma once

#include <array>
#include <atomic>
#include <bitset>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "tablebay/client_steps.h"
#include "tablebay/cut.h"
#include "tablebay/figures.h"
#include "tablebay/recent_pulls.h"
#include "tablebay/table.h"
#include "tablebay/wire.h"

namespace tablebay {

struct Limits {
  uint64_t memory_bytes = 0;  // of rows, indexes and step windows; 0 = none
  uint64_t keys_per_call = 0;
  uint64_t message_bytes = 0;
  uint32_t threads = 0;  // calls worked on at once; 0 = no bound. One that a hold keeps waiting is not among them
};

// Relaxed: each is exact, a set of them read together may be a call apart.
struct Counters {
  std::atomic<uint64_t> pulls{0}, pushes{0}, steps{0};  // calls, by method
  std::atomic<uint64_t> pushes_applied{0};              // calls that changed a shard, or marked an empty step
  std::atomic<uint64_t> duplicates{0};                  // calls of which every shard had been applied before
  std::atomic<uint64_t> duplicates_changed{0};          // shards sent again with other content
  std::atomic<uint64_t> calls_helped{0};                // tables' parts of pulls, and pushes, that others helped with
  std::atomic<uint64_t> pushes_after_pull{0};           // tables' parts of pushes whose rows a pull before had found
  std::atomic<uint64_t> keys_pulled{0}, keys_missing{0}, keys_pushed{0}, keys_duplicate{0};
  std::atomic<uint64_t> push_missing_created{0}, push_missing_dropped{0};  // keys without a row
  std::atomic<uint64_t> rows_created{0}, rows_deleted{0};
  std::atomic<uint64_t> tables_loaded{0};
  std::atomic<uint64_t> nonfinite_rows{0};
  std::atomic<uint64_t> received_bytes{0}, sent_bytes{0};
  std::atomic<uint64_t> refused{0};  // calls answered by an error
};

class Store {
 public:
  Store(uint64_t epoch, const Limits& limits);
  ~Store();
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  uint64_t epoch() const { return epoch_; }
  const Counters& counters() const { return counters_; }
  // Of the server's requests; those of enum Method come first.
  Figures& figures() { return figures_; }
  uint64_t bytes() const { return bytes_.load(std::memory_order_relaxed); }
  uint64_t rows() const;

  // Until this is called the store owns every shard, at version 1.
  void SetShardMap(const std::vector<uint16_t>& owners, uint16_t index, uint32_t version);

  // The id is the CRC-32C of the name: the same on every server without asking. Throws StatusError(BadRequest)
  // where the name, or its id, is taken.
  uint32_t CreateTable(const TableOptions& options);
  Table& FindTable(uint32_t id) const;  // throws StatusError(NotRegistered)

  struct Greeting {
    uint64_t next_step;     // the lowest that this server has not applied for the client
    std::string cursor;     // kept with the step before
    uint64_t durable_next;  // every step below it is in a committed checkpoint
  };
  // Makes a client known, or raises its incarnation: from the return on, nothing that an older one sent can change
  // a row. Throws StatusError(Fenced) for an incarnation lower than the one known.
  Greeting Hello(uint64_t client_high, uint64_t client_low, uint32_t incarnation, uint32_t rank = kNoRank);
  void Forget(uint64_t client_high, uint64_t client_low);

  // A request, read and checked; its answer's size is known before it runs, so that the caller makes the memory.
  struct Exchange;
  std::shared_ptr<Exchange> Prepare(Method method, std::string_view message);
  static size_t ResponseBytes(const Exchange& exchange);
  void Execute(Exchange& exchange, char* response);
  void CountRefusal() { counters_.refused.fetch_add(1, std::memory_order_relaxed); }

  // The same on arrays, for a table in this process: no client, no step. Keys may repeat.
  void Pull(Table& table, std::string_view keys, uint32_t flags, char* out);
  // Returns the number of rows deleted. counts: as Part's.
  uint64_t Push(Table& table, std::string_view keys, std::string_view rows, uint32_t flags,
                std::string_view counts = {});

  struct Scanned {
    std::string keys;
    std::string rows;
    uint64_t position;  // 0 = the end
  };
  Scanned Scan(const Table& table, uint64_t position, uint32_t rows_max) const;
  // How many buckets of the index a search for one of the table's rows looks at, on average; 0 without rows.
  double IndexProbes(const Table& table) const;

  // -- eviction --

  struct Swept {
    uint64_t looked_at = 0;
    uint64_t evicted = 0;
    uint32_t next_stripe = 0;  // kStripes = the end
  };
  // Removes the rows that leave from the stripes from `first_stripe` on, for about so many seconds, but at least of
  // one; a slice under a stripe's lock at a time. With a budget the first answers may be 0 as the next stripe: rows are
  // being counted. Throws StatusError(BadRequest) for a table without eviction.
  Swept Evict(Table& table, uint32_t first_stripe, double seconds);
  // The time that eviction goes by, Unix seconds; from SetNow on what that says, until it says 0.
  uint32_t Now() const;
  void SetNow(uint32_t now) { fixed_now_.store(now); }

  // Days end until `epoch`, a number that rises by 1 for each: shows and clicks fade by that many. Whether any did: an
  // epoch that has come already, or is older, changes nothing. Throws StatusError(BadRequest) for a table that counts
  // no shows.
  bool Decay(Table& table, uint32_t epoch);

  // -- checkpoints --

  struct ClientStep {
    uint64_t client_high;
    uint64_t client_low;
    uint64_t next;  // the highest step begun, + 1
  };
  // For so long, or until Take or Release, no step of a ranked client begins here; what each has begun. Pulls, and
  // the pushes of other clients, go on.
  std::vector<ClientStep> Hold(double seconds);
  void Release();
  // Lets the steps below the limits through, waits until they are whole, but no longer than wait_s, cuts, and ends
  // the hold. An older cut that was not committed is given up. A delta only where that can be (must_be_full).
  std::shared_ptr<Cut> Take(const std::vector<ClientStep>& limits, double wait_s, bool full);
  // As Cut's own.
  void Commit(const Cut& cut);
  void Abandon(Cut& cut);
  bool must_be_full() const;
  // Of any ranked client, the lowest step not applied.
  uint64_t HighestStep() const;

  using ClientKey = std::pair<uint64_t, uint64_t>;
  struct ClientKeyHash {
    size_t operator()(const ClientKey& key) const { return HashKey(key.first ^ HashKey(key.second)); }
  };

 private:
  friend class Cut;
  friend class Loader;
  struct Piece;

  std::shared_ptr<ClientSteps> FindClient(const Sender& sender) const;
  void CheckSender(const Sender& sender) const;
  Piece CheckPart(const Part& part, bool push) const;
  static void CheckChecksum(const Part& part, const Piece& piece);
  void CheckPush(const Part& part, Piece& piece);
  void CheckOwned(const Piece& piece) const;
  void Arrange(Piece& piece) const;
  static bool AnyRepeats(const Piece& piece);
  void MergeRepeats(Piece& piece) const;
  static size_t FirstNonFinite(const Piece& piece);
  void MeetNonFinite(Piece& piece, size_t bad);
  static bool MayCreate(const Piece& piece);
  void GuessRows(Piece& piece);
  void CheckMemory(const std::vector<Piece>& pieces);
  void RunPull(const Piece& piece, char* out);
  void ApplyPiece(const Piece& piece, uint32_t stripe, const Run& run, uint64_t step);
  void ApplyPushes(Exchange& exchange);
  void ApplyStripe(Exchange& exchange, uint32_t stripe);
  static uint64_t StepOf(const Exchange& exchange);
  Table* DaysTable(const Table& table) const;
  Moment MomentOf(const Table& table, const Table* days, uint32_t stripe) const;
  void CheckCounts(const Part& part, const Piece& piece) const;
  void Enter(const Exchange& exchange, ClientSteps& client);
  std::vector<std::pair<ClientKey, std::shared_ptr<ClientSteps>>> Clients() const;
  bool Aligned(const std::vector<ClientStep>& limits) const;
  static ClientImage ImageOf(const ClientKey& key, ClientSteps& client);
  void EndActive();
  void AbandonActive();
  void MakeRoomForImages(const Exchange& exchange);
  bool CrowdOut();
  uint64_t BudgetOf(const Table& table) const;
  bool CountSurplus(Table& table, const std::function<bool()>& is_over);

  const uint64_t epoch_;
  const Limits limits_;
  std::atomic<uint64_t> bytes_{0};
  std::atomic<uint32_t> fixed_now_{0};
  mutable Counters counters_;
  Figures figures_;
  mutable std::array<std::shared_mutex, kStripes> stripe_locks_;

  RecentPulls recent_pulls_;

  mutable std::shared_mutex tables_lock_;
  std::unordered_map<uint32_t, std::unique_ptr<Table>> tables_;  // never removed

  mutable std::shared_mutex clients_lock_;
  std::unordered_map<ClientKey, std::shared_ptr<ClientSteps>, ClientKeyHash> clients_;

  mutable std::shared_mutex map_lock_;
  std::bitset<kShards> owned_;
  uint32_t map_version_ = 1;

  // Calls being worked on.
  class Permit;
  std::mutex permits_mutex_;
  std::condition_variable permits_changed_;
  uint32_t permits_;

  // What holds steps up. gate_changes_ counts what may have let one in.
  mutable std::mutex gate_mutex_;
  std::condition_variable gate_changed_;
  std::condition_variable step_whole_;
  std::chrono::steady_clock::time_point hold_began_;
  std::chrono::steady_clock::time_point hold_until_;
  std::atomic<bool> holding_{false};
  std::atomic<uint64_t> gate_changes_{0};

  mutable std::mutex cut_mutex_;
  std::shared_ptr<Cut> cut_;  // under way
  bool must_be_full_ = true;
  // Written under every stripe's lock: a cut is under way, whose rows are kept as they were.
  std::atomic<bool> cutting_{false};
  // The cut under way was ended for the memory it took.
  std::atomic<bool> crowded_out_{false};
};

}  // namespace tablebay
