#include "tablebay/store.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <functional>
#include <optional>

#include "piece.h"
#include "tablebay/crc32c.h"
#include "tablebay/crew.h"
#include "tablebay/failpoints.h"
#include "tablebay/status.h"

namespace tablebay {
namespace {

constexpr uint64_t kStepEnd = uint64_t{1} << 63;  // beyond lies nonsense, which must not move a window

// What a window remembers of a step's content, to notice a step sent again with other content.
uint16_t Fold(uint32_t checksum) { return static_cast<uint16_t>(checksum ^ checksum >> 16); }

}  // namespace

// One of the calls worked on at once.
class Store::Permit {
 public:
  explicit Permit(Store* store) : store_(store->limits_.threads == 0 ? nullptr : store) {
    if (store_ == nullptr) return;
    std::unique_lock<std::mutex> lock(store_->permits_mutex_);
    store_->permits_changed_.wait(lock, [&] { return store_->permits_ > 0; });
    --store_->permits_;
  }
  ~Permit() {
    if (store_ == nullptr) return;
    {
      const std::lock_guard<std::mutex> lock(store_->permits_mutex_);
      ++store_->permits_;
    }
    store_->permits_changed_.notify_one();
  }
  Permit(const Permit&) = delete;
  Permit& operator=(const Permit&) = delete;

 private:
  Store* const store_;
};

struct Store::Exchange {
  Method method;
  Request request;
  std::shared_ptr<ClientSteps> client;
  std::vector<Piece> pushes;
  std::vector<Piece> pulls;
  std::vector<size_t> pulled_bytes;
  std::bitset<kShards> shards;  // of the pushes
  uint16_t content = 0;
  std::atomic<uint32_t> applied{0};  // shards
  std::atomic<uint32_t> duplicate{0};
};

Store::Store(uint64_t epoch, const Limits& limits) : epoch_(epoch), limits_(limits), permits_(limits.threads) {
  owned_.set();
}
Store::~Store() = default;

uint64_t Store::rows() const {
  const std::shared_lock<std::shared_mutex> lock(tables_lock_);
  uint64_t rows = 0;
  for (const auto& [id, table] : tables_) rows += table->rows();
  return rows;
}

void Store::SetShardMap(const std::vector<uint16_t>& owners, uint16_t index, uint32_t version) {
  if (owners.size() != kShards) {
    throw StatusError("BadRequest", Format("the shard map has %zu owners, wanted %u", owners.size(), kShards));
  }
  const std::unique_lock<std::shared_mutex> lock(map_lock_);
  for (uint32_t shard = 0; shard < kShards; ++shard) owned_[shard] = owners[shard] == index;
  map_version_ = version;
}

uint32_t Store::CreateTable(const TableOptions& options) {
  const CheckedOptions checked = Check(options);
  const uint32_t id = Crc32c(options.name.data(), options.name.size());
  const std::unique_lock<std::shared_mutex> lock(tables_lock_);
  const auto found = tables_.find(id);
  if (found != tables_.end()) {
    const std::string& name = found->second->name();
    throw StatusError("BadRequest",
                      name == options.name
                          ? Format("table '%s' exists already", name.c_str())
                          : Format("table '%s' cannot be made: its id %08x is that of table '%s'; choose another name",
                                   options.name.c_str(), id, name.c_str()));
  }
  tables_.emplace(id, std::make_unique<Table>(checked, id, &bytes_));
  return id;
}

Table& Store::FindTable(uint32_t id) const {
  const std::shared_lock<std::shared_mutex> lock(tables_lock_);
  const auto found = tables_.find(id);
  if (found == tables_.end()) {
    throw StatusError("NotRegistered",
                      Format("no table has the id %08x; this server has %zu tables", id, tables_.size()));
  }
  return *found->second;
}

Store::Greeting Store::Hello(uint64_t client_high, uint64_t client_low, uint32_t incarnation, uint32_t rank) {
  std::shared_ptr<ClientSteps> client;
  bool newer;
  {
    const std::unique_lock<std::shared_mutex> lock(clients_lock_);
    std::shared_ptr<ClientSteps>& entry = clients_[{client_high, client_low}];
    if (entry == nullptr) {
      entry = std::make_shared<ClientSteps>();
      bytes_.fetch_add(sizeof(ClientSteps) + kShards * sizeof(ShardSteps), std::memory_order_relaxed);
    }
    client = entry;
    const uint32_t known = client->incarnation.load();
    newer = incarnation > known;
    if (incarnation < known) {
      throw StatusError("Fenced", Format("incarnation %u of this client says hello, and incarnation %u is known",
                                         incarnation, known));
    }
    client->incarnation.store(incarnation);
  }
  // A push of the older incarnation looks at the number under each stripe's lock: once every lock has been held
  // after the change, it can change nothing more.
  for (std::shared_mutex& stripe : stripe_locks_) const std::unique_lock<std::shared_mutex> lock(stripe);
  const std::lock_guard<std::mutex> lock(client->mutex);
  client->rank = rank;
  // It may cut its steps otherwise than the one before did.
  if (newer) client->pieces.fill({});
  Greeting greeting{client->whole.LowestOpen(), {}, client->durable_next.load()};
  if (greeting.next_step > 0) {
    const Cursor& cursor = client->cursors[(greeting.next_step - 1) % StepWindow::kSteps];
    if (cursor.step == greeting.next_step - 1) greeting.cursor = cursor.bytes;
  }
  return greeting;
}

void Store::Forget(uint64_t client_high, uint64_t client_low) {
  const std::unique_lock<std::shared_mutex> lock(clients_lock_);
  if (clients_.erase({client_high, client_low}) > 0) {
    bytes_.fetch_sub(sizeof(ClientSteps) + kShards * sizeof(ShardSteps), std::memory_order_relaxed);
  }
}

std::shared_ptr<ClientSteps> Store::FindClient(const Sender& sender) const {
  const std::shared_lock<std::shared_mutex> lock(clients_lock_);
  const auto found = clients_.find({sender.client_high, sender.client_low});
  if (found == clients_.end()) {
    throw StatusError("ServerLost",
                      "this server does not know the client: it was restarted since the client said "
                      "Hello, or the client was idle for too long; its steps cannot be told apart");
  }
  return found->second;
}

void Store::CheckSender(const Sender& sender) const {
  if (sender.epoch != 0 && sender.epoch != epoch_) {
    throw StatusError("ServerLost", Format("this server's epoch is %llu, and the client knows %llu: the server was "
                                           "restarted and has not the rows it had",
                                           Wide(epoch_), Wide(sender.epoch)));
  }
  if (sender.shard_map_version != 0) {
    const std::shared_lock<std::shared_mutex> lock(map_lock_);
    if (sender.shard_map_version != map_version_) {
      throw StatusError("WrongShard", Format("the shard map has version %u, and the client knows %u", map_version_,
                                             sender.shard_map_version));
    }
  }
}

std::shared_ptr<Store::Exchange> Store::Prepare(Method method, std::string_view message) {
  const Permit permit(this);
  counters_.received_bytes.fetch_add(message.size(), std::memory_order_relaxed);
  auto exchange = std::make_shared<Exchange>();
  exchange->method = method;
  exchange->request = ReadRequest(method, message);
  const Request& request = exchange->request;
  if (request.has_sender) CheckSender(request.sender);

  const bool pushes =
      method == Method::kPush || !request.pushes.empty() || (method == Method::kStep && request.pulls.empty());
  if (pushes) {
    if (!request.has_sender) {
      throw StatusError("BadRequest", "a push wants the sender that Hello answered; found none");
    }
    if (request.step >= kStepEnd) {
      throw StatusError("BadRequest", Format("step %llu, wanted less than 2^63", Wide(request.step)));
    }
    if (request.step > request.oldest_step && request.step - request.oldest_step >= StepWindow::kSteps) {
      throw StatusError("OutOfRange",
                        Format("step %llu is %llu past oldest_step %llu, wanted less than 64", Wide(request.step),
                               Wide(request.step - request.oldest_step), Wide(request.oldest_step)));
    }
    if (request.pieces > kPiecesMax || request.piece >= request.pieces) {
      throw StatusError("BadRequest", Format("piece %u of %u of a step, wanted one below as many, and at most %zu",
                                             request.piece, request.pieces, kPiecesMax));
    }
    if (request.cursor.size() > kCursorBytes) {
      throw StatusError("BadRequest",
                        Format("a cursor of %zu bytes, wanted at most %zu", request.cursor.size(), kCursorBytes));
    }
    exchange->client = FindClient(request.sender);
  }

  uint32_t content = 0;
  exchange->pushes.reserve(request.pushes.size());
  for (const Part& part : request.pushes) {
    Piece& piece = exchange->pushes.emplace_back(CheckPart(part, true));
    for (size_t i = 0; i + 1 < exchange->pushes.size(); ++i) {
      if (exchange->pushes[i].table != piece.table) continue;
      throw StatusError("BadRequest",
                        Format("table '%s' is pushed to twice in one step, wanted once", piece.table->name().c_str()));
    }
    const uint32_t crc = part.has_crc32c ? part.crc32c : ChecksumOf(part);
    const uint32_t with[4] = {content, part.table_id, part.flags & ~kUnique, crc};
    content = Crc32c(with, sizeof with);
    CheckPush(part, piece);
    exchange->shards |= piece.shards;
  }
  exchange->content = Fold(content);
  uint64_t answer = 0;
  for (const Part& part : request.pulls) {
    Piece& piece = exchange->pulls.emplace_back(CheckPart(part, false));
    CheckChecksum(part, piece);
    Arrange(piece);
    exchange->pulled_bytes.push_back(uint64_t{piece.count} * piece.bytes_each);
    answer += exchange->pulled_bytes.back();
  }
  if (limits_.message_bytes != 0 && ResponseBytes(*exchange) > limits_.message_bytes) {
    throw StatusError("ResourceExhausted", Format("the answer has %llu bytes, wanted at most %llu; ask for fewer keys "
                                                  "at once",
                                                  Wide(answer), Wide(limits_.message_bytes)));
  }
  CheckMemory(exchange->pushes);
  CheckMemory(exchange->pulls);
  return exchange;
}

size_t Store::ResponseBytes(const Exchange& exchange) {
  return tablebay::ResponseBytes(exchange.method, exchange.pulled_bytes);
}

// REQUIRES the stripe's lock, and the room of the run.
void Store::ApplyPiece(const Piece& piece, uint32_t stripe, const Run& run, uint64_t step) {
  Table& table = *piece.table;
  const uint32_t before = table.StripeRows(stripe);
  if ((piece.flags & kDelete) != 0) {
    table.Delete(stripe, run);
    counters_.rows_deleted.fetch_add(before - table.StripeRows(stripe), std::memory_order_relaxed);
    return;
  }
  uint32_t dropped = 0;
  if ((piece.flags & kAssign) != 0) {
    table.Assign(stripe, run, piece.rows, MomentOf(table, piece.days, stripe));
  } else {
    Moment moment = MomentOf(table, piece.days, stripe);
    moment.counts = piece.counts;
    dropped = table.Apply(stripe, run, piece.rows, step, moment, piece.sightings);
    counters_.push_missing_dropped.fetch_add(dropped, std::memory_order_relaxed);
    counters_.push_missing_created.fetch_add(table.StripeRows(stripe) - before, std::memory_order_relaxed);
  }
  counters_.keys_pushed.fetch_add(run.size() - dropped, std::memory_order_relaxed);
  counters_.rows_created.fetch_add(table.StripeRows(stripe) - before, std::memory_order_relaxed);
}

void Store::ApplyStripe(Exchange& exchange, uint32_t stripe) {
  const Request& request = exchange.request;
  ClientSteps& client = *exchange.client;
  const std::unique_lock<std::shared_mutex> lock(stripe_locks_[stripe]);
  const uint32_t incarnation = client.incarnation.load();
  if (incarnation != request.sender.incarnation) {
    throw StatusError("Fenced", Format("incarnation %u of this client is known, and incarnation %u sends: a newer "
                                       "process has taken its place",
                                       incarnation, request.sender.incarnation));
  }
  std::bitset<kShardsPerStripe> fresh;
  uint32_t duplicates = 0;
  const uint32_t first_shard = stripe * kShardsPerStripe;
  for (uint32_t i = 0; i < kShardsPerStripe; ++i) {
    if (!exchange.shards[first_shard + i]) continue;
    ShardSteps& steps = client.shards[first_shard + i];
    if (!steps.window.Applied(request.step)) {
      fresh.set(i);
      continue;
    }
    ++duplicates;
    if (steps.content[request.step % StepWindow::kSteps] != exchange.content) {
      counters_.duplicates_changed.fetch_add(1, std::memory_order_relaxed);
    }
  }
  if (fresh.any()) {
    struct Job {
      const Piece* piece;
      Run run;
      std::vector<uint32_t> kept;
    };
    std::vector<Job> jobs;
    jobs.reserve(exchange.pushes.size());  // a run may point into its job
    for (const Piece& piece : exchange.pushes) {
      Job& job = jobs.emplace_back(Job{&piece, piece.RunOf(stripe), {}});
      if (duplicates == 0) continue;
      // Some shards have this step already: their keys are left out.
      for (uint32_t i = job.run.begin; i < job.run.end; ++i) {
        const uint32_t shard = ShardOfHash(HashKey(LoadKey(piece.keys, job.run.At(i))));
        if (fresh[shard - first_shard]) job.kept.push_back(job.run.At(i));
      }
      counters_.keys_duplicate.fetch_add(job.run.size() - job.kept.size(), std::memory_order_relaxed);
      job.run = Run{piece.keys, job.kept.data(), 0, static_cast<uint32_t>(job.kept.size())};
    }
    // Room for all tables before the first row changes: what follows cannot fail.
    std::deque<Table::Room> rooms;
    for (const Job& job : jobs) {
      const bool deletes = (job.piece->flags & kDelete) != 0;
      if (Table* const sightings = job.piece->sightings; sightings != nullptr) {
        rooms.emplace_back(sightings, stripe, job.run);
        sightings->ReserveImages(stripe, 2 * uint64_t{job.run.size()});
      }
      if (MayCreate(*job.piece)) rooms.emplace_back(job.piece->table, stripe, job.run);
      job.piece->table->ReserveImages(stripe, uint64_t{job.run.size()} * (deletes ? 2 : 1));
    }
    for (const Job& job : jobs) ApplyPiece(*job.piece, stripe, job.run, request.step);
    for (uint32_t i = 0; i < kShardsPerStripe; ++i) {
      if (!fresh[i]) continue;
      ShardSteps& steps = client.shards[first_shard + i];
      steps.window.Mark(request.step);
      steps.content[request.step % StepWindow::kSteps] = exchange.content;
    }
  } else {
    for (const Piece& piece : exchange.pushes) {
      counters_.keys_duplicate.fetch_add(piece.RunOf(stripe).size(), std::memory_order_relaxed);
    }
  }
  exchange.applied.fetch_add(static_cast<uint32_t>(fresh.count()), std::memory_order_relaxed);
  exchange.duplicate.fetch_add(duplicates, std::memory_order_relaxed);
}

// Before a step changes its first row: the rows that it may have saved count towards the memory limit.
void Store::MakeRoomForImages(const Exchange& exchange) {
  if (limits_.memory_bytes == 0 || !cutting_.load(std::memory_order_relaxed)) return;
  uint64_t wanted = 0;
  for (const Piece& piece : exchange.pushes) {
    wanted += uint64_t{piece.count} * piece.table->layout().row_bytes;
    if (piece.sightings != nullptr) wanted += uint64_t{piece.count} * piece.sightings->layout().row_bytes;
  }
  if (bytes() + wanted > limits_.memory_bytes) CrowdOut();
}

void Store::ApplyPushes(Exchange& exchange) {
  const Request& request = exchange.request;
  ClientSteps& client = *exchange.client;
  TABLEBAY_FAILPOINT("push.after_validate");
  MakeRoomForImages(exchange);
  for (Piece& piece : exchange.pushes) GuessRows(piece);
  uint64_t keys = 0;
  for (const Piece& piece : exchange.pushes) keys += piece.count;
  const auto apply = [&](uint32_t stripe) {
    bool touched = false;
    for (uint32_t i = 0; i < kShardsPerStripe; ++i) touched = touched || exchange.shards[stripe * kShardsPerStripe + i];
    if (!touched) return;
    if (exchange.applied > 0) TABLEBAY_FAILPOINT("push.mid_apply");
    ApplyStripe(exchange, stripe);
  };
  if (Crew::OfProcess().Share(kStripes, keys >= Crew::kKeysLarge, std::ref(apply)) > 0) {
    counters_.calls_helped.fetch_add(1, std::memory_order_relaxed);
  }
  for (Piece& piece : exchange.pushes) recent_pulls_.GiveBack(std::move(piece.guesses));
  TABLEBAY_FAILPOINT("push.before_whole");
  bool known = exchange.applied == 0 && exchange.duplicate > 0;
  {
    const std::lock_guard<std::mutex> lock(client.mutex);
    const uint32_t incarnation = client.incarnation.load();
    if (incarnation != request.sender.incarnation) {
      throw StatusError("Fenced", Format("incarnation %u of this client is known, and incarnation %u sends",
                                         incarnation, request.sender.incarnation));
    }
    if (client.whole.Applied(request.step)) {
      known = exchange.applied == 0;
    } else {
      ClientSteps::Pieces& pieces = client.pieces[request.step % StepWindow::kSteps];
      if (pieces.step != request.step) pieces = {request.step, 0};
      pieces.applied |= uint64_t{1} << request.piece;
      if (static_cast<uint32_t>(__builtin_popcountll(pieces.applied)) >= request.pieces) {
        client.whole.Mark(request.step);
        Cursor& cursor = client.cursors[request.step % StepWindow::kSteps];
        cursor.step = request.step;
        cursor.bytes.assign(request.cursor);
      }
    }
  }
  if (holding_.load()) {
    const std::lock_guard<std::mutex> gate(gate_mutex_);
    step_whole_.notify_all();
  }
  (known ? counters_.duplicates : counters_.pushes_applied).fetch_add(1, std::memory_order_relaxed);
}

void Store::RunPull(const Piece& piece, char* out) {
  Table& table = *piece.table;
  const bool create = (piece.flags & (kReadOnly | kState | kContains | kShows)) == 0;
  const RowLayout& at = table.layout();
  // Narrow weights are read to the end of their place first.
  const bool widens = table.narrow() && (piece.flags & (kState | kContains | kShows)) == 0;
  char* const rows = widens ? out + uint64_t{piece.count} * (piece.bytes_each - at.weight_bytes) : out;
  std::atomic<uint64_t> missing_total{0};
  // A push may follow.
  std::unique_ptr<RecentPulls::Positions> found = create ? recent_pulls_.Begin(piece.count) : nullptr;
  const auto read = [&](uint32_t stripe) {
    Run run = piece.RunOf(stripe);
    if (found != nullptr) run.found = found->data();
    if (run.size() == 0) return;
    const auto make = [&](const Run& keys) {
      const std::unique_lock<std::shared_mutex> lock(stripe_locks_[stripe]);
      const uint32_t before = table.StripeRows(stripe);
      const Table::Room room(&table, stripe, keys);
      table.Create(stripe, keys, MomentOf(table, piece.days, stripe), rows);
      const uint32_t made = table.StripeRows(stripe) - before;
      counters_.rows_created.fetch_add(made, std::memory_order_relaxed);
      return made;
    };
    bool new_rows = false;
    std::vector<uint32_t> missing;
    {
      const std::shared_lock<std::shared_mutex> lock(stripe_locks_[stripe]);
      new_rows = create && MayCreate(piece) && table.AreMissing(stripe, run);
      if (new_rows) {
        // To look for each of them first would be for nothing.
      } else if ((piece.flags & kState) != 0) {
        table.ReadState(stripe, run, out);
      } else if ((piece.flags & kContains) != 0) {
        table.Contains(stripe, run, out);
      } else if ((piece.flags & kShows) != 0) {
        table.ReadShows(stripe, run, MomentOf(table, piece.days, stripe), out);
      } else {
        table.Read(stripe, run, at.weights, at.weight_bytes, rows, &missing);
      }
    }
    if (new_rows) {
      missing_total.fetch_add(make(run), std::memory_order_relaxed);
      return;
    }
    if (missing.empty()) return;
    missing_total.fetch_add(missing.size(), std::memory_order_relaxed);
    if (!create) return;
    if (!MayCreate(piece)) {
      // What the row will begin with, once it is admitted.
      table.ReserveWide();
      for (const uint32_t i : missing) {
        table.InitialiseStored(LoadKey(piece.keys, i), rows + uint64_t{i} * at.weight_bytes);
      }
      return;
    }
    Run rest{piece.keys, missing.data(), 0, static_cast<uint32_t>(missing.size())};
    rest.found = run.found;
    make(rest);
  };
  if (Crew::OfProcess().Share(kStripes, piece.count >= Crew::kKeysLarge, std::ref(read)) > 0) {
    counters_.calls_helped.fetch_add(1, std::memory_order_relaxed);
  }
  if (found != nullptr) recent_pulls_.Keep(table.id(), piece.keys, std::move(found));
  if (widens) table.WidenInPlace(out, piece.count);
  counters_.keys_pulled.fetch_add(piece.count, std::memory_order_relaxed);
  counters_.keys_missing.fetch_add(missing_total, std::memory_order_relaxed);
}

uint64_t Store::StepOf(const Exchange& exchange) { return exchange.request.step; }

void Store::Execute(Exchange& exchange, char* out) {
  if (exchange.client != nullptr) Enter(exchange, *exchange.client);
  const Permit permit(this);
  Response response;
  response.epoch = epoch_;
  {
    const std::shared_lock<std::shared_mutex> lock(map_lock_);
    response.shard_map_version = map_version_;
  }
  response.step = exchange.request.step;
  if (exchange.client != nullptr) {
    ApplyPushes(exchange);
    response.durable_next = exchange.client->durable_next.load();
  }
  response.applied_shards = exchange.applied;
  response.duplicate_shards = exchange.duplicate;
  const std::vector<char*> spaces = WriteResponse(exchange.method, out, response, exchange.pulled_bytes);
  for (size_t i = 0; i < spaces.size(); ++i) RunPull(exchange.pulls[i], spaces[i]);
  std::atomic<uint64_t>& calls = exchange.method == Method::kPull   ? counters_.pulls
                                 : exchange.method == Method::kPush ? counters_.pushes
                                                                    : counters_.steps;
  calls.fetch_add(1, std::memory_order_relaxed);
  counters_.sent_bytes.fetch_add(ResponseBytes(exchange), std::memory_order_relaxed);
}

void Store::Pull(Table& table, std::string_view keys, uint32_t flags, char* out) {
  Part part;
  part.table_id = table.id();
  part.dim = table.dim();
  part.flags = flags;
  part.keys = keys;
  std::vector<Piece> pieces;
  pieces.push_back(CheckPart(part, false));
  Arrange(pieces[0]);
  CheckMemory(pieces);
  RunPull(pieces[0], out);
  counters_.pulls.fetch_add(1, std::memory_order_relaxed);
}

uint64_t Store::Push(Table& table, std::string_view keys, std::string_view rows, uint32_t flags,
                     std::string_view counts) {
  Part part;
  part.table_id = table.id();
  part.dim = table.dim();
  part.flags = flags;
  part.keys = keys;
  part.rows = rows;
  part.counts = counts;
  std::vector<Piece> pieces;
  pieces.push_back(CheckPart(part, true));
  Piece& piece = pieces[0];
  CheckPush(part, piece);
  CheckMemory(pieces);
  GuessRows(piece);
  const uint64_t step = table.NextOwnStep();
  std::atomic<uint64_t> removed{0};
  const auto apply = [&](uint32_t stripe) {
    const Run run = piece.RunOf(stripe);
    if (run.size() == 0) return;
    const std::unique_lock<std::shared_mutex> lock(stripe_locks_[stripe]);
    const uint32_t before = table.StripeRows(stripe);
    std::optional<Table::Room> sightings_room;
    if (piece.sightings != nullptr) {
      sightings_room.emplace(piece.sightings, stripe, run);
      piece.sightings->ReserveImages(stripe, 2 * uint64_t{run.size()});
    }
    table.ReserveImages(stripe, 2 * uint64_t{run.size()});
    if (!MayCreate(piece)) {
      ApplyPiece(piece, stripe, run, step);
      removed.fetch_add(before - table.StripeRows(stripe), std::memory_order_relaxed);
    } else {
      const Table::Room room(&table, stripe, run);
      ApplyPiece(piece, stripe, run, step);
    }
  };
  if (Crew::OfProcess().Share(kStripes, piece.count >= Crew::kKeysLarge, std::ref(apply)) > 0) {
    counters_.calls_helped.fetch_add(1, std::memory_order_relaxed);
  }
  recent_pulls_.GiveBack(std::move(piece.guesses));
  counters_.pushes.fetch_add(1, std::memory_order_relaxed);
  return removed;
}

}  // namespace tablebay
