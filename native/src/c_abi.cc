// tablebay.h over the store: errors become text, and nothing is thrown at C.
//
// A saved table is: "TBTABLE1", the bytes of a text u32, its CRC-32C u32, the text, then the blocks of a checkpoint's
// file of rows (docs/checkpoint-format.md). The text is lines: name, dim, dtype, optimizer, initializer, seed, steps.
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tablebay.h"
#include "tablebay/crc32c.h"
#include "tablebay/cut.h"
#include "tablebay/loader.h"
#include "tablebay/status.h"
#include "tablebay/store.h"
#include "tablebay/wire.h"

#define TABLEBAY_EXPORT extern "C" __attribute__((visibility("default")))

struct tb_table {
  std::shared_ptr<tablebay::Store> store;
  tablebay::Table* table;
  std::mutex saving;
};

namespace {

using namespace tablebay;

constexpr char kMagic[9] = "TBTABLE1";
constexpr uint32_t kTextMax = 1 << 16;
constexpr size_t kHead = 16;

thread_local std::string last_error;

// `work`, or `failed` with the error kept.
template <class Result, class Work>
Result Guarded(Result failed, Work&& work) noexcept {
  try {
    return work();
  } catch (const StatusError& error) {
    last_error = std::string(error.kind()) + ": " + error.what();
  } catch (const std::bad_alloc&) {
    last_error = "ResourceExhausted: the system has no memory";
  } catch (const std::exception& error) {
    last_error = std::string("TablebayError: ") + error.what();
  }
  return failed;
}

const char* Given(const char* text, const char* what) {
  if (text == nullptr) throw StatusError("BadRequest", Format("%s is a null pointer, wanted a text", what));
  return text;
}

template <class Number>
Number ToNumber(std::string_view text, const char* what) {
  Number number{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) {
    throw StatusError("BadRequest",
                      Format("%s is '%.*s', wanted a number", what, static_cast<int>(text.size()), text.data()));
  }
  return number;
}

// "Name key=value key=value".
std::pair<std::string, Parameters> Parse(std::string_view text, const char* what) {
  std::pair<std::string, Parameters> found;
  while (!text.empty()) {
    const size_t space = std::min(text.find(' '), text.size());
    const std::string_view word = text.substr(0, space);
    text.remove_prefix(std::min(space + 1, text.size()));
    if (word.empty()) continue;
    if (found.first.empty()) {
      found.first = word;
      continue;
    }
    const size_t equals = word.find('=');
    const std::string name(word.substr(0, equals));
    if (equals == std::string_view::npos || !found.second.emplace(name, 0).second) {
      throw StatusError("BadRequest", Format("%s: found '%.*s', wanted name=value, each name once", what,
                                             static_cast<int>(word.size()), word.data()));
    }
    found.second[name] = ToNumber<double>(word.substr(equals + 1), name.c_str());
  }
  return found;
}

std::string ToText(const std::string& name, const Parameters& parameters) {
  std::string text = name;
  for (const auto& [key, value] : parameters) {
    char number[32];
    const auto end = std::to_chars(number, number + sizeof number, value).ptr;
    text += ' ' + key + '=' + std::string(number, end);
  }
  return text;
}

TableOptions OptionsOf(std::string_view name, uint32_t dim, std::string_view dtype, std::string_view optimizer,
                       std::string_view initializer, uint64_t seed) {
  TableOptions options;
  options.name = name;
  if (options.name.find('\n') != std::string::npos) throw StatusError("BadRequest", "a name has one line, found more");
  options.dim = dim;
  options.element_type = dtype;
  std::tie(options.optimizer, options.optimizer_parameters) = Parse(optimizer, "optimizer");
  std::tie(options.initializer, options.initializer_parameters) = Parse(initializer, "initializer");
  options.seed = seed;
  return options;
}

std::string_view Keys(const uint64_t* keys, size_t count, const void* rows) {
  if (count > 0 && (keys == nullptr || rows == nullptr)) {
    throw StatusError("BadRequest", Format("keys or rows are a null pointer, wanted %zu", count));
  }
  if (count > UINT32_MAX) throw StatusError("BadRequest", Format("%zu keys, wanted less than 2^32", count));
  return {reinterpret_cast<const char*>(keys), count * sizeof *keys};
}

[[noreturn]] void Fail(const char* path, const char* what) {
  throw StatusError("TablebayError", Format("%s: %s: %s", path, what, std::strerror(errno)));
}

class File {
 public:
  File(const char* path, int flags) : path_(path), number_(::open(path, flags | O_CLOEXEC, 0644)) {
    if (number_ < 0) Fail(path, "open");
  }
  ~File() {
    if (number_ >= 0) ::close(number_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  void Write(const char* bytes, size_t size) {
    for (size_t done = 0; done < size;) {
      const ssize_t now = ::write(number_, bytes + done, size - done);
      if (now < 0 && errno == EINTR) continue;
      if (now < 0) Fail(path_, "write");
      done += static_cast<size_t>(now);
    }
  }
  // Fewer only at the end.
  size_t Read(char* bytes, size_t size) {
    size_t done = 0;
    while (done < size) {
      const ssize_t now = ::read(number_, bytes + done, size - done);
      if (now < 0 && errno == EINTR) continue;
      if (now < 0) Fail(path_, "read");
      if (now == 0) break;
      done += static_cast<size_t>(now);
    }
    return done;
  }
  void Sync() {
    if (::fsync(number_) != 0) Fail(path_, "fsync");
  }

 private:
  const char* const path_;
  const int number_;
};

void Save(tb_table& table, const char* path) {
  const std::lock_guard<std::mutex> one_at_a_time(table.saving);
  const TableOptions& options = table.table->checked().options;
  const std::shared_ptr<Cut> cut = table.store->Take({}, 0, true);
  const std::string text =
      Format("%s\n%u\n%s\n%s\n%s\n%llu\n%llu\n", options.name.c_str(), options.dim, options.element_type.c_str(),
             ToText(options.optimizer, options.optimizer_parameters).c_str(),
             ToText(options.initializer, options.initializer_parameters).c_str(),
             static_cast<unsigned long long>(options.seed), static_cast<unsigned long long>(table.table->own_steps()));
  const std::string unfinished = std::string(path) + ".unfinished";
  try {
    File file(unfinished.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW);
    char head[kHead];
    const auto size = static_cast<uint32_t>(text.size());
    const uint32_t crc = Crc32c(text.data(), text.size());
    std::memcpy(head, kMagic, 8);
    std::memcpy(head + 8, &size, 4);
    std::memcpy(head + 12, &crc, 4);
    file.Write(head, sizeof head);
    file.Write(text.data(), text.size());
    std::vector<char> buffer(Cut::kBufferMin);
    while (const size_t bytes = cut->Read(table.table->id(), buffer.data(), buffer.size())) {
      file.Write(buffer.data(), bytes);
    }
    file.Sync();
    if (std::rename(unfinished.c_str(), path) != 0) Fail(path, "rename");
    const std::string_view whole(path);
    const size_t slash = whole.rfind('/');
    const std::string folder(slash == std::string_view::npos ? "." : whole.substr(0, slash + 1));
    File(folder.c_str(), O_RDONLY | O_DIRECTORY).Sync();
    cut->Abandon();
  } catch (...) {
    cut->Abandon();
    ::unlink(unfinished.c_str());
    throw;
  }
}

[[noreturn]] void Damaged(const char* path, const char* what) {
  throw StatusError("CheckpointInvalid", Format("%s: %s", path, what));
}

tb_table* Load(const char* path) {
  File file(path, O_RDONLY);
  char head[kHead];
  if (file.Read(head, sizeof head) < sizeof head || std::memcmp(head, kMagic, 8) != 0) {
    Damaged(path, "no saved table: it does not begin with TBTABLE1");
  }
  uint32_t size;
  uint32_t crc;
  std::memcpy(&size, head + 8, 4);
  std::memcpy(&crc, head + 12, 4);
  if (size > kTextMax) Damaged(path, "a text of more than 65536 bytes before the rows");
  std::string text(size, '\0');
  if (file.Read(text.data(), size) < size || Crc32c(text.data(), size) != crc) Damaged(path, "the text is damaged");
  std::vector<std::string_view> lines;
  for (std::string_view rest = text; !rest.empty();) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    lines.push_back(rest.substr(0, end));
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  if (lines.size() != 7) Damaged(path, "a text that has not seven lines");
  auto store = std::make_shared<Store>(1, Limits{});
  const auto loader = std::make_shared<Loader>(store, [] {
    std::vector<uint16_t> all(kShards);
    for (uint16_t shard = 0; shard < kShards; ++shard) all[shard] = shard;
    return all;
  }());
  const uint32_t id = loader->CreateTable(OptionsOf(lines[0], ToNumber<uint32_t>(lines[1], "dim"), lines[2], lines[3],
                                                    lines[4], ToNumber<uint64_t>(lines[5], "seed")));
  Loader::FileOptions options;
  options.table_id = id;
  options.start = kHead + size;
  const std::unique_ptr<Loader::File> blocks = Loader::Begin(loader, options);
  std::vector<char> buffer(Cut::kBufferMin);
  size_t held = 0;
  for (;;) {
    const size_t more = file.Read(buffer.data() + held, buffer.size() - held);
    held += more;
    const size_t taken = blocks->Feed({buffer.data(), held});
    std::memmove(buffer.data(), buffer.data() + taken, held - taken);
    held -= taken;
    if (more == 0 && taken == 0) break;
  }
  if (!blocks->ended() || held > 0) Damaged(path, "it does not end with its rows' footer");
  loader->Finish();
  Table& table = store->FindTable(id);
  table.GoOnAt(ToNumber<uint64_t>(lines[6], "steps"));
  return new tb_table{std::move(store), &table, {}};
}

}  // namespace

TABLEBAY_EXPORT uint32_t tb_abi_version(void) { return TB_ABI_VERSION; }

TABLEBAY_EXPORT const char* tb_last_error(void) { return last_error.c_str(); }

TABLEBAY_EXPORT tb_table* tb_create(const char* name, uint32_t dim, const char* dtype, const char* optimizer,
                                    const char* initializer, uint64_t seed) {
  return Guarded<tb_table*>(nullptr, [&] {
    const TableOptions options = OptionsOf(Given(name, "name"), dim, Given(dtype, "dtype"),
                                           Given(optimizer, "optimizer"), Given(initializer, "initializer"), seed);
    auto store = std::make_shared<Store>(1, Limits{});
    Table& table = store->FindTable(store->CreateTable(options));
    return new tb_table{std::move(store), &table, {}};
  });
}

TABLEBAY_EXPORT int tb_pull(tb_table* table, const uint64_t* keys, size_t count, void* rows, int create) {
  return Guarded(-1, [&] {
    table->store->Pull(*table->table, Keys(keys, count, rows), create != 0 ? 0 : kReadOnly, static_cast<char*>(rows));
    return 0;
  });
}

TABLEBAY_EXPORT int tb_push(tb_table* table, const uint64_t* keys, size_t count, const void* gradients) {
  return Guarded(-1, [&] {
    const std::string_view key_bytes = Keys(keys, count, gradients);
    table->store->Push(*table->table, key_bytes,
                       {static_cast<const char*>(gradients), count * table->table->wire_bytes()}, 0);
    return 0;
  });
}

TABLEBAY_EXPORT uint64_t tb_rows(const tb_table* table) { return table->table->rows(); }

TABLEBAY_EXPORT int tb_save(tb_table* table, const char* path) {
  return Guarded(-1, [&] {
    Save(*table, Given(path, "path"));
    return 0;
  });
}

TABLEBAY_EXPORT tb_table* tb_load(const char* path) {
  return Guarded<tb_table*>(nullptr, [&] { return Load(Given(path, "path")); });
}

TABLEBAY_EXPORT void tb_free(tb_table* table) { delete table; }
