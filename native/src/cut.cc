#include "tablebay/cut.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "tablebay/failpoints.h"
#include "tablebay/status.h"
#include "tablebay/store.h"

namespace tablebay {
namespace {

// What is copied of a stripe under its lock at once: a push waits for no longer than that takes.
constexpr size_t kCopyBytes = size_t{256} << 10;

class Writer {
 public:
  explicit Writer(std::string* out) : out_(out) {}
  template <class T>
  void Put(T value) {
    out_->append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void Put(const std::string& bytes) { out_->append(bytes); }

 private:
  std::string* const out_;
};

class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}
  template <class T>
  T Get(const char* what) {
    T value;
    const std::string_view from = Take(sizeof value, what);
    std::memcpy(&value, from.data(), sizeof value);
    return value;
  }
  std::string_view Take(size_t size, const char* what) {
    if (size > bytes_.size()) {
      throw StatusError("CheckpointInvalid",
                        Format("a client's %s wants %zu bytes, and its block has %zu more", what, size, bytes_.size()));
    }
    const std::string_view taken = bytes_.substr(0, size);
    bytes_.remove_prefix(size);
    return taken;
  }
  bool done() const { return bytes_.empty(); }

 private:
  std::string_view bytes_;
};

}  // namespace

std::string WriteClient(const ClientImage& client) {
  std::string payload;
  Writer writer(&payload);
  writer.Put(client.high);
  writer.Put(client.low);
  writer.Put(client.incarnation);
  writer.Put(client.rank);
  writer.Put(client.whole.next());
  writer.Put(client.whole.bits());
  writer.Put(static_cast<uint32_t>(client.cursors.size()));
  for (const Cursor& cursor : client.cursors) {
    writer.Put(cursor.step);
    writer.Put(static_cast<uint32_t>(cursor.bytes.size()));
    writer.Put(cursor.bytes);
  }
  writer.Put(static_cast<uint32_t>(client.shards.size()));
  for (const auto& [shard, steps] : client.shards) {
    writer.Put(shard);
    writer.Put(steps.window.next());
    writer.Put(steps.window.bits());
    for (const uint16_t content : steps.content) writer.Put(content);
  }
  return payload;
}

ClientImage ReadClient(std::string_view payload) {
  Reader reader(payload);
  ClientImage client;
  client.high = reader.Get<uint64_t>("id");
  client.low = reader.Get<uint64_t>("id");
  client.incarnation = reader.Get<uint32_t>("incarnation");
  client.rank = reader.Get<uint32_t>("rank");
  const auto window = [&] {
    const auto next = reader.Get<uint64_t>("window");
    return StepWindow::Of(next, reader.Get<uint64_t>("window"));
  };
  client.whole = window();
  const auto cursors = reader.Get<uint32_t>("number of cursors");
  if (cursors > StepWindow::kSteps) {
    throw StatusError("CheckpointInvalid", Format("a client with %u cursors, wanted at most %llu", cursors,
                                                  static_cast<unsigned long long>(StepWindow::kSteps)));
  }
  for (uint32_t i = 0; i < cursors; ++i) {
    Cursor& cursor = client.cursors.emplace_back();
    cursor.step = reader.Get<uint64_t>("cursor");
    const auto bytes = reader.Get<uint32_t>("cursor");
    if (bytes > kCursorBytes) {
      throw StatusError("CheckpointInvalid",
                        Format("a client with a cursor of %u bytes, wanted at most %zu", bytes, kCursorBytes));
    }
    cursor.bytes = reader.Take(bytes, "cursor");
  }
  const auto shards = reader.Get<uint32_t>("number of shards");
  if (shards > kShards) {
    throw StatusError("CheckpointInvalid", Format("a client with %u shards, wanted at most %u", shards, kShards));
  }
  client.shards.reserve(shards);
  for (uint32_t i = 0; i < shards; ++i) {
    auto& [shard, steps] = client.shards.emplace_back();
    shard = reader.Get<uint32_t>("shard");
    if (shard >= kShards || (i > 0 && shard <= client.shards[i - 1].first)) {
      throw StatusError("CheckpointInvalid",
                        Format("a client's shard %u, wanted them ascending, below %u", shard, kShards));
    }
    steps.window = window();
    for (uint16_t& content : steps.content) content = reader.Get<uint16_t>("content");
  }
  if (!reader.done()) throw StatusError("CheckpointInvalid", "a client's block is longer than its content");
  return client;
}

void Cut::RequireActive() const {
  if (abandoned_.load()) throw StatusError("CheckpointFailed", "this cut was given up");
  if (store_->crowded_out_.load()) {
    throw StatusError("CheckpointFailed",
                      Format("rows that changed while it was written are kept as they were, and found no room in this "
                             "server's memory limit of %llu bytes; wanted a higher one, or more servers",
                             static_cast<unsigned long long>(store_->limits_.memory_bytes)));
  }
}

size_t Cut::Read(std::optional<uint32_t> table_id, char* out, size_t size) {
  if (size < kBufferMin) {
    throw StatusError("BadRequest", Format("a buffer of %zu bytes, wanted at least %zu", size, kBufferMin));
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  RequireActive();
  const auto found = files_.find(table_id);
  if (found == files_.end()) throw StatusError("BadRequest", "the cut has no such table");
  File& file = found->second;
  size_t filled = 0;
  while (!file.ended && size - filled >= kBufferMin) filled += Next(file, out + filled);
  file.bytes += filled;
  return filled;
}

Cut::Figures Cut::FiguresOf(std::optional<uint32_t> table_id) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = files_.find(table_id);
  if (found == files_.end()) throw StatusError("BadRequest", "the cut has no such table");
  const File& file = found->second;
  return {file.sums.rows, file.sums.deleted, file.footer_crc, file.bytes};
}

size_t Cut::Next(File& file, char* out) {
  if (file.table != nullptr) {
    // Deletions first: a key may have been made anew since it was deleted.
    if (const size_t bytes = NextDeleted(file, out); bytes > 0) return bytes;
    if (const size_t bytes = NextRows(file, out); bytes > 0) return bytes;
  } else if (file.client < clients_.size()) {
    const std::string payload = WriteClient(clients_[file.client++]);
    std::memcpy(out + kBlockHead, payload.data(), payload.size());
    return SealBlock(out, BlockKind::kClient, 1, payload.size(), &file.sums);
  }
  file.ended = true;
  return WriteFooter(out, file.sums, &file.footer_crc);
}

size_t Cut::NextDeleted(File& file, char* out) {
  constexpr size_t kMost = kPayloadMax / sizeof(uint64_t);
  while (file.deleted_stripe < kStripes && file.deleted.size() < kMost) {
    const uint32_t stripe = file.deleted_stripe++;
    const std::unique_lock<std::shared_mutex> lock(store_->stripe_locks_[stripe]);
    RequireActive();
    const std::vector<uint64_t> more = file.table->TakeDeleted(stripe);
    file.deleted.insert(file.deleted.end(), more.begin(), more.end());
  }
  if (file.deleted.empty()) return 0;
  const size_t n = std::min(kMost, file.deleted.size());
  std::memcpy(out + kBlockHead, file.deleted.data(), n * sizeof(uint64_t));
  file.deleted.erase(file.deleted.begin(), file.deleted.begin() + static_cast<std::ptrdiff_t>(n));
  return SealBlock(out, BlockKind::kDeleted, static_cast<uint32_t>(n), n * sizeof(uint64_t), &file.sums);
}

size_t Cut::NextRows(File& file, char* out) {
  const size_t row_bytes = file.table->layout().row_bytes;
  const auto most = static_cast<uint32_t>(std::max<size_t>(1, kPayloadMax / row_bytes));
  const auto at_once = static_cast<uint32_t>(std::max<size_t>(1, kCopyBytes / row_bytes));
  uint32_t count = 0;
  while (file.stripe < kStripes && count < most) {
    const uint32_t wanted = std::min(at_once, most - count);
    uint32_t copied;
    {
      const std::unique_lock<std::shared_mutex> lock(store_->stripe_locks_[file.stripe]);
      RequireActive();
      copied = file.table->CopyCut(file.stripe, out + kBlockHead + count * row_bytes, wanted);
      if (copied < wanted) file.table->EndCut(file.stripe);
    }
    count += copied;
    if (copied < wanted) ++file.stripe;
    if (count > 0) TABLEBAY_FAILPOINT("cut.mid_copy");
  }
  return count == 0 ? 0 : SealBlock(out, BlockKind::kRows, count, count * row_bytes, &file.sums);
}

void Cut::Commit() { store_->Commit(*this); }

void Cut::Abandon() { store_->Abandon(*this); }

// -- the store's side --

namespace {

using Clock = std::chrono::steady_clock;

Clock::duration Seconds(double seconds) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

}  // namespace

std::vector<Store::ClientStep> Store::Hold(double seconds) {
  {
    const std::lock_guard<std::mutex> lock(gate_mutex_);
    hold_began_ = Clock::now();
    hold_until_ = hold_began_ + Seconds(seconds);
    holding_.store(true);
  }
  std::vector<ClientStep> begun;
  for (const auto& [key, client] : Clients()) {
    const std::lock_guard<std::mutex> lock(client->mutex);
    if (client->rank == kNoRank) continue;
    client->limit = 0;
    begun.push_back({key.first, key.second, client->begun});
  }
  return begun;
}

void Store::Release() {
  const std::lock_guard<std::mutex> lock(gate_mutex_);
  holding_.store(false);
  ++gate_changes_;
  gate_changed_.notify_all();
}

// Lets a ranked client's step in, once no hold is in its way.
void Store::Enter(const Exchange& exchange, ClientSteps& client) {
  const uint64_t step = StepOf(exchange);
  for (;;) {
    const uint64_t seen = gate_changes_.load();
    {
      const std::lock_guard<std::mutex> lock(client.mutex);
      if (client.rank == kNoRank) return;
      if (!holding_.load() || step < client.begun || step < client.limit) {
        client.begun = std::max(client.begun, step + 1);
        return;
      }
    }
    std::unique_lock<std::mutex> gate(gate_mutex_);
    const bool changed =
        gate_changed_.wait_until(gate, hold_until_, [&] { return !holding_.load() || gate_changes_.load() != seen; });
    if (!changed && Clock::now() >= hold_until_) holding_.store(false);
  }
}

std::vector<std::pair<Store::ClientKey, std::shared_ptr<ClientSteps>>> Store::Clients() const {
  const std::shared_lock<std::shared_mutex> lock(clients_lock_);
  return {clients_.begin(), clients_.end()};
}

// Whether every step below the limits has come, and none above them has begun.
bool Store::Aligned(const std::vector<ClientStep>& limits) const {
  for (const ClientStep& limit : limits) {
    std::shared_ptr<ClientSteps> client;
    {
      const std::shared_lock<std::shared_mutex> lock(clients_lock_);
      const auto found = clients_.find({limit.client_high, limit.client_low});
      if (found != clients_.end()) client = found->second;
    }
    if (client == nullptr) {
      if (limit.next == 0) continue;
      return false;
    }
    const std::lock_guard<std::mutex> lock(client->mutex);
    if (client->whole.LowestOpen() != limit.next || client->begun > limit.next) return false;
  }
  return true;
}

std::shared_ptr<Cut> Store::Take(const std::vector<ClientStep>& limits, double wait_s, bool full) {
  const std::lock_guard<std::mutex> one_at_a_time(cut_mutex_);
  if (cut_ != nullptr) AbandonActive();
  for (const ClientStep& limit : limits) {
    const std::shared_lock<std::shared_mutex> lock(clients_lock_);
    const auto found = clients_.find({limit.client_high, limit.client_low});
    if (found == clients_.end()) continue;
    const std::lock_guard<std::mutex> client(found->second->mutex);
    found->second->limit = limit.next;
  }
  const auto end = Clock::now() + Seconds(wait_s);
  {
    std::unique_lock<std::mutex> gate(gate_mutex_);
    ++gate_changes_;
    gate_changed_.notify_all();
    while (!Aligned(limits) && Clock::now() < end)
      step_whole_.wait_until(gate, std::min(end, Clock::now() + Seconds(0.002)));
  }

  std::shared_ptr<Cut> cut(new Cut(this));
  {
    std::vector<std::unique_lock<std::shared_mutex>> stripes;
    stripes.reserve(kStripes);
    for (std::shared_mutex& lock : stripe_locks_) stripes.emplace_back(lock);
    cut->aligned_ = Aligned(limits);
    cut->full_ = full || must_be_full_;
    must_be_full_ = true;  // until it is committed
    crowded_out_.store(false);
    cutting_.store(true);
    cut_ = cut;
    const std::shared_lock<std::shared_mutex> tables(tables_lock_);
    for (const auto& [id, table] : tables_) cut->tables_.push_back(table.get());
    std::sort(cut->tables_.begin(), cut->tables_.end(),
              [](const Table* one, const Table* other) { return one->id() < other->id(); });
    for (Table* const table : cut->tables_) {
      for (uint32_t stripe = 0; stripe < kStripes; ++stripe) table->BeginCut(stripe, cut->full_);
      cut->files_[table->id()].table = table;
    }
    cut->files_[Cut::kSteps];
    for (const auto& [key, client] : Clients()) cut->clients_.push_back(ImageOf(key, *client));
  }
  TABLEBAY_FAILPOINT("cut.after_begin");
  {
    const std::lock_guard<std::mutex> lock(gate_mutex_);
    if (holding_.load()) cut->pause_s_ = std::chrono::duration<double>(Clock::now() - hold_began_).count();
  }
  Release();
  return cut;
}

// REQUIRES every stripe's lock.
ClientImage Store::ImageOf(const ClientKey& key, ClientSteps& client) {
  ClientImage image;
  image.high = key.first;
  image.low = key.second;
  image.incarnation = client.incarnation.load();
  for (uint32_t shard = 0; shard < kShards; ++shard) {
    if (client.shards[shard].window.next() > 0) image.shards.emplace_back(shard, client.shards[shard]);
  }
  const std::lock_guard<std::mutex> lock(client.mutex);
  image.rank = client.rank;
  image.whole = client.whole;
  const uint64_t next = client.whole.next();
  for (const Cursor& cursor : client.cursors) {
    if (!cursor.bytes.empty() && cursor.step < next && cursor.step + StepWindow::kSteps >= next) {
      image.cursors.push_back(cursor);
    }
  }
  return image;
}

void Store::Commit(const Cut& cut) {
  const std::lock_guard<std::mutex> lock(cut_mutex_);
  if (cut_.get() != &cut) throw StatusError("CheckpointFailed", "this cut was given up");
  cut.RequireActive();
  for (const ClientImage& image : cut.clients_) {
    const std::shared_lock<std::shared_mutex> clients(clients_lock_);
    const auto found = clients_.find({image.high, image.low});
    if (found == clients_.end()) continue;
    const uint64_t next = image.whole.LowestOpen();
    std::atomic<uint64_t>& known = found->second->durable_next;
    if (known.load() < next) known.store(next);
  }
  must_be_full_ = false;
  EndActive();
}

void Store::Abandon(Cut& cut) {
  const std::lock_guard<std::mutex> lock(cut_mutex_);
  if (cut_.get() == &cut) AbandonActive();
}

// REQUIRES cut_mutex_.
void Store::AbandonActive() {
  cut_->abandoned_.store(true);
  EndActive();
}

// REQUIRES cut_mutex_.
void Store::EndActive() {
  cutting_.store(false);
  for (uint32_t stripe = 0; stripe < kStripes; ++stripe) {
    const std::unique_lock<std::shared_mutex> lock(stripe_locks_[stripe]);
    for (Table* const table : cut_->tables_) table->EndCut(stripe);
  }
  cut_.reset();
}

// Ends the cut under way, and gives back what it kept; whether there was one. Without cut_mutex_: Take holds that
// while it waits for steps such as the caller's.
bool Store::CrowdOut() {
  if (!cutting_.load()) return false;
  for (uint32_t stripe = 0; stripe < kStripes; ++stripe) {
    const std::unique_lock<std::shared_mutex> lock(stripe_locks_[stripe]);
    if (stripe == 0) {
      if (!cutting_.load()) return false;
      crowded_out_.store(true);
    }
    // Else another cut has begun meanwhile.
    if (!crowded_out_.load()) break;
    const std::shared_lock<std::shared_mutex> tables(tables_lock_);
    for (const auto& [id, table] : tables_) table->EndCut(stripe);
  }
  return true;
}

uint64_t Store::HighestStep() const {
  uint64_t highest = 0;
  for (const auto& [key, client] : Clients()) {
    const std::lock_guard<std::mutex> lock(client->mutex);
    if (client->rank != kNoRank) highest = std::max(highest, client->whole.LowestOpen());
  }
  return highest;
}

bool Store::must_be_full() const {
  const std::lock_guard<std::mutex> lock(cut_mutex_);
  return must_be_full_;
}

}  // namespace tablebay
