#include "tablebay/loader.h"

#include <cstring>
#include <string>

#include "tablebay/crc32c.h"
#include "tablebay/failpoints.h"
#include "tablebay/status.h"

namespace tablebay {
namespace {

constexpr size_t kClientBytes = sizeof(ClientSteps) + kShards * sizeof(ShardSteps);

unsigned long long Wide(uint64_t value) { return value; }

bool Same(const RowLayout& one, const RowLayout& other) {
  return one.step == other.step && one.weights == other.weights && one.weight_bytes == other.weight_bytes &&
         one.slots == other.slots && one.slot_bytes == other.slot_bytes && one.row_bytes == other.row_bytes;
}

// Whether rows of that layout can be read at all.
bool Sound(const RowLayout& layout) {
  const auto within = [&](uint64_t offset, uint64_t bytes) { return offset + bytes <= layout.row_bytes; };
  return layout.row_bytes >= RowLayout::kVersion + sizeof(uint32_t) && layout.row_bytes <= kPayloadMax &&
         within(layout.weights, layout.weight_bytes) && within(layout.slots, layout.slot_bytes) &&
         within(layout.step, layout.step == 0 ? 0 : sizeof(uint32_t));
}

}  // namespace

Loader::Loader(std::shared_ptr<Store> store, const std::vector<uint16_t>& owned) : store_(std::move(store)) {
  for (const uint16_t shard : owned) {
    if (shard >= kShards) throw StatusError("BadRequest", Format("shard %u, wanted one below %u", shard, kShards));
    owned_.set(shard);
  }
}

Loader::~Loader() {
  if (finished_) return;
  store_->bytes_.fetch_sub(clients_.size() * kClientBytes, std::memory_order_relaxed);
}

uint32_t Loader::CreateTable(const TableOptions& options) {
  const CheckedOptions checked = Check(options);
  const uint32_t id = Crc32c(options.name.data(), options.name.size());
  const auto [at, is_new] = tables_.emplace(id, nullptr);
  if (!is_new) {
    throw StatusError("BadRequest", Format("table '%s': its id %08x is that of table '%s', which is being loaded",
                                           options.name.c_str(), id, at->second->name().c_str()));
  }
  at->second = std::make_unique<Table>(checked, id, &store_->bytes_);
  return id;
}

Table& Loader::FindTable(uint32_t table_id) const {
  const auto found = tables_.find(table_id);
  if (found == tables_.end()) {
    throw StatusError("CheckpointInvalid", Format("no table of the checkpoint has the id %08x", table_id));
  }
  return *found->second;
}

uint64_t Loader::rows() const {
  if (finished_) return rows_;
  uint64_t rows = 0;
  for (const auto& [id, table] : tables_) rows += table->rows();
  return rows;
}

std::unique_ptr<Loader::File> Loader::Begin(std::shared_ptr<Loader> loader, const FileOptions& options) {
  return std::unique_ptr<File>(new File(std::move(loader), options));
}

Loader::File::File(std::shared_ptr<Loader> loader, const FileOptions& options)
    : loader_(std::move(loader)), options_(options), place_(options.start) {
  if (options.table_id) {
    const Table& table = loader_->FindTable(*options.table_id);
    layout_ = options.layout.value_or(table.layout());
    const char* const name = table.name().c_str();
    if (!Sound(layout_)) {
      throw StatusError("CheckpointInvalid",
                        Format("table '%s': a row of %u bytes with its parts outside of it", name, layout_.row_bytes));
    }
    if (layout_.weight_bytes != table.layout().weight_bytes) {
      throw StatusError("CheckpointMismatch",
                        Format("table '%s': the checkpoint's weights have %u bytes, the table's %u", name,
                               layout_.weight_bytes, table.layout().weight_bytes));
    }
    if (!options.weights_only && !Same(layout_, table.layout())) {
      throw StatusError(
          "CheckpointMismatch",
          Format("table '%s': the checkpoint's rows have %u bytes with %u of optimizer state, the "
                 "table's %u with %u; weights alone can be loaded without it",
                 name, layout_.row_bytes, layout_.slot_bytes, table.layout().row_bytes, table.layout().slot_bytes));
    }
  }
  if (options.table_id && options.rows > 0) {
    Table& table = loader_->FindTable(*options.table_id);
    const uint64_t rows = options.rows * loader_->owned_.count() / kShards;
    loader_->RequireMemory(table, rows);
    table.ReserveRows(rows);
  }
  ++loader_->open_files_;
}

size_t Loader::File::Feed(std::string_view bytes) {
  if (loader_->failed_ || loader_->finished_) {
    throw StatusError("BadRequest", "what was being loaded has failed, or is in place already");
  }
  try {
    return Take(bytes);
  } catch (...) {
    loader_->failed_ = true;
    throw;
  }
}

size_t Loader::File::Take(std::string_view bytes) {
  size_t taken = 0;
  Block block;
  while (!ended_ && ReadBlock(bytes.substr(taken), place_, &block)) {
    if (block.kind == BlockKind::kFooter) {
      TakeFooter(block);
    } else {
      TakeBlock(block, place_);
      Count(block);
    }
    taken += block.size();
    place_ += block.size();
  }
  if (ended_ && taken < bytes.size()) {
    throw StatusError("CheckpointInvalid", Format("at byte %llu: bytes after the footer", Wide(place_)));
  }
  return taken;
}

std::unique_ptr<Loader::File> Loader::File::Rest(uint64_t start) const {
  FileOptions options = options_;
  options.start = start;
  options.rows = 0;
  std::unique_ptr<File> rest(new File(loader_, options));
  rest->is_rest_ = true;
  return rest;
}

void Loader::File::Join(const File& rest) {
  if (ended_ || is_rest_ || !rest.is_rest_ || rest.options_.start != place_) {
    throw StatusError("CheckpointInvalid", Format("at byte %llu: blocks end here, and the next begin at byte %llu",
                                                  Wide(place_), Wide(rest.options_.start)));
  }
  sums_.rows += rest.sums_.rows;
  sums_.deleted += rest.sums_.deleted;
  sums_.blocks += rest.sums_.blocks;
  for (const uint32_t crc : rest.crcs_) sums_.crc = Crc32c(&crc, sizeof crc, sums_.crc);
  place_ = rest.footer_place_.value_or(rest.place_);
  --loader_->open_files_;
  if (!rest.ended_) return;
  try {
    CheckFooter(rest.footer_);
  } catch (...) {
    loader_->failed_ = true;
    throw;
  }
  place_ = rest.place_;
  ended_ = true;
  footer_crc_ = rest.footer_crc_;
  --loader_->open_files_;
}

void Loader::File::Count(const Block& block) {
  if (block.kind == BlockKind::kRows) sums_.rows += block.count;
  if (block.kind == BlockKind::kDeleted) sums_.deleted += block.count;
  ++sums_.blocks;
  if (is_rest_) {
    crcs_.push_back(block.crc);
  } else {
    sums_.crc = Crc32c(&block.crc, sizeof block.crc, sums_.crc);
  }
}

void Loader::File::TakeBlock(const Block& block, uint64_t place) {
  const auto refuse = [&](const std::string& what) {
    throw StatusError("CheckpointInvalid", Format("at byte %llu: %s", Wide(place), what.c_str()));
  };
  const char* const bytes = block.payload.data();
  if (options_.table_id) {
    Table& table = loader_->FindTable(*options_.table_id);
    if (block.kind == BlockKind::kRows) {
      if (uint64_t{block.count} * layout_.row_bytes != block.payload.size()) {
        refuse(
            Format("%u rows in %zu bytes, wanted %u bytes each", block.count, block.payload.size(), layout_.row_bytes));
      }
      loader_->RequireMemory(table, block.count);
      try {
        table.Load(bytes, block.count, layout_, loader_->owned_, options_.delta, options_.weights_only,
                   loader_->store_->Now(), loader_->stripe_locks_.data());
      } catch (const StatusError& error) {
        if (std::string_view(error.kind()) != "CheckpointInvalid") throw;
        refuse(error.what());
      }
    } else if (block.kind == BlockKind::kDeleted && options_.delta) {
      if (uint64_t{block.count} * sizeof(uint64_t) != block.payload.size()) {
        refuse(Format("%u deleted keys in %zu bytes", block.count, block.payload.size()));
      }
      for (uint32_t i = 0; i < block.count; ++i) {
        const uint64_t hash = HashKey(LoadKey(bytes, i));
        if (!loader_->owned_[ShardOfHash(hash)]) continue;
        table.Delete(StripeOfHash(hash), Run{bytes, nullptr, i, i + 1});
      }
    } else {
      refuse(Format("a block of kind %u in a %s of rows", static_cast<uint32_t>(block.kind),
                    options_.delta ? "delta" : "full file"));
    }
  } else {
    if (block.kind != BlockKind::kClient || block.count != 1) {
      refuse(Format("a block of kind %u that holds %u things, in a file of steps", static_cast<uint32_t>(block.kind),
                    block.count));
    }
    try {
      loader_->TakeClient(ReadClient(block.payload));
    } catch (const StatusError& error) {
      if (std::string_view(error.kind()) != "CheckpointInvalid") throw;
      refuse(error.what());
    }
  }
}

void Loader::File::TakeFooter(const Block& block) {
  if (block.payload.size() != kFooterPayload || block.count != 0) {
    throw StatusError("CheckpointInvalid", Format("at byte %llu: a footer of %zu bytes, wanted %zu", Wide(place_),
                                                  block.payload.size(), kFooterPayload));
  }
  std::memcpy(&footer_, block.payload.data(), sizeof footer_);
  footer_crc_ = Crc32c(block.payload.data(), block.payload.size());
  if (is_rest_) {
    // What it says is of all blocks: who joins the parts of the file looks at it.
    footer_place_ = place_;
  } else {
    CheckFooter(footer_);
    --loader_->open_files_;
  }
  ended_ = true;
}

void Loader::File::CheckFooter(const Footer& footer) const {
  if (footer.rows != sums_.rows || footer.deleted != sums_.deleted || footer.blocks != sums_.blocks ||
      footer.crc != sums_.crc) {
    throw StatusError("CheckpointInvalid",
                      Format("at byte %llu: the footer says %llu rows, %llu deletions and %llu blocks of CRC-32C %08x; "
                             "found %llu, %llu and %llu of %08x",
                             Wide(place_), Wide(footer.rows), Wide(footer.deleted), Wide(footer.blocks), footer.crc,
                             Wide(sums_.rows), Wide(sums_.deleted), Wide(sums_.blocks), sums_.crc));
  }
}

void Loader::RequireMemory(const Table& table, uint64_t rows) const {
  const uint64_t limit = store_->limits_.memory_bytes;
  const uint64_t wanted = table.BytesForNew(rows);
  if (limit == 0 || store_->bytes() + wanted <= limit) return;
  throw StatusError("ResourceExhausted",
                    Format("table '%s': %llu rows of the checkpoint want %llu bytes; this server holds %llu of its "
                           "limit of %llu",
                           table.name().c_str(), Wide(rows), Wide(wanted), Wide(store_->bytes()), Wide(limit)));
}

// A client's steps of one server; of several, where shards have other servers now: then a step is whole if it was on
// all of them.
void Loader::TakeClient(const ClientImage& image) {
  const Store::ClientKey key{image.high, image.low};
  // As for rows: few bytes of a file can ask for much.
  if (const uint64_t limit = store_->limits_.memory_bytes;
      limit != 0 && clients_.count(key) == 0 && store_->bytes() + kClientBytes > limit) {
    throw StatusError(
        "ResourceExhausted",
        Format("the steps of %zu clients of the checkpoint, and of more, want %zu bytes each; this server "
               "holds %llu of its limit of %llu",
               clients_.size(), kClientBytes, Wide(store_->bytes()), Wide(limit)));
  }
  std::shared_ptr<ClientSteps>& client = clients_[key];
  if (client == nullptr) {
    client = std::make_shared<ClientSteps>();
    client->incarnation.store(image.incarnation);
    client->rank = image.rank;
    client->whole = image.whole;
    store_->bytes_.fetch_add(kClientBytes, std::memory_order_relaxed);
  } else {
    if (image.incarnation > client->incarnation.load()) client->incarnation.store(image.incarnation);
    client->whole = StepWindow::Common(client->whole, image.whole);
  }
  for (const Cursor& cursor : image.cursors) client->cursors[cursor.step % StepWindow::kSteps] = cursor;
  for (const auto& [shard, steps] : image.shards) {
    if (owned_[shard]) client->shards[shard] = steps;
  }
}

void Loader::Finish() {
  if (failed_ || finished_ || open_files_ > 0) {
    throw StatusError("CheckpointInvalid",
                      Format("%u files of the checkpoint have not been read to their end", open_files_));
  }
  TABLEBAY_FAILPOINT("restore.before_finish");
  const std::lock_guard<std::mutex> one_at_a_time(store_->cut_mutex_);
  if (store_->cut_ != nullptr) store_->AbandonActive();
  std::vector<std::unique_lock<std::shared_mutex>> stripes;
  stripes.reserve(kStripes);
  for (std::shared_mutex& lock : store_->stripe_locks_) stripes.emplace_back(lock);
  const std::unique_lock<std::shared_mutex> tables(store_->tables_lock_);
  for (const auto& [id, table] : tables_) {
    const auto found = store_->tables_.find(id);
    if (found == store_->tables_.end()) continue;
    if (found->second->name() != table->name() || !Same(found->second->layout(), table->layout()) ||
        found->second->checked().options.eviction != table->checked().options.eviction) {
      throw StatusError("CheckpointMismatch",
                        Format("table '%s' of this server has another layout, or eviction, than the one "
                               "loaded",
                               found->second->name().c_str()));
    }
  }
  rows_ = rows();
  // A checkpoint of which everything was taken, and nothing beside it, can be gone on from by a delta.
  const bool alone = store_->tables_.empty();
  for (auto& [id, table] : tables_) {
    table->BeginDeltas();
    const auto found = store_->tables_.find(id);
    if (found == store_->tables_.end()) {
      store_->tables_.emplace(id, std::move(table));
    } else {
      found->second->SwapRows(*table);
    }
    store_->counters_.tables_loaded.fetch_add(1, std::memory_order_relaxed);
  }
  const std::unique_lock<std::shared_mutex> clients(store_->clients_lock_);
  for (auto& [key, client] : clients_) {
    client->begun = client->whole.next();
    client->durable_next.store(client->whole.LowestOpen());
    store_->clients_.emplace(key, client);
  }
  store_->must_be_full_ = !alone;
  finished_ = true;
}

}  // namespace tablebay
