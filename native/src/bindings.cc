// tablebay.native._core: the classes of this library as Python sees them.
//
// Everything that takes time runs without the GIL, on raw pointers taken before it is released; results are bytes
// objects that are filled in before anyone else can see them. Arrays are taken as they are: a wrong dtype, a strided
// or a read-only one is refused, never copied.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <cstring>
#include <new>
#include <optional>
#include <tuple>

#include "python_arrays.h"
#include "tablebay/bulk.h"
#include "tablebay/crc32c.h"
#include "tablebay/crew.h"
#include "tablebay/failpoints.h"
#include "tablebay/figures.h"
#include "tablebay/frozen_rows.h"
#include "tablebay/kernels.h"
#include "tablebay/loader.h"
#include "tablebay/status.h"
#include "tablebay/store.h"

namespace py = pybind11;

namespace tablebay {

void BindClient(py::module_& m);                                      // client_bindings.cc
void BindHttp2(py::module_& m);                                       // http2_bindings.cc
void BindEviction(py::class_<Store, std::shared_ptr<Store>>& store);  // eviction_bindings.cc

namespace {

py::bytes Handle(Store& store, Method method, const py::object& request) {
  const Buffer buffer(request);
  Figures::Call call(store.figures(), static_cast<uint32_t>(method), buffer.size());
  std::shared_ptr<Store::Exchange> exchange;
  try {
    {
      const py::gil_scoped_release release;
      exchange = store.Prepare(method, buffer.view());
    }
    NewBytes response(Store::ResponseBytes(*exchange));
    {
      const py::gil_scoped_release release;
      store.Execute(*exchange, response.data());
      exchange.reset();
    }
    call.Answered(response.size);
    return std::move(response.object);
  } catch (const StatusError& error) {
    call.Refused(CodeOf(error.kind()));
    store.CountRefusal();
    throw;
  } catch (const std::bad_alloc&) {
    call.Refused(StatusCode::kResourceExhausted);
    throw;
  } catch (const py::error_already_set& error) {
    // Of a bytes object that could not be made.
    if (error.matches(PyExc_MemoryError)) call.Refused(StatusCode::kResourceExhausted);
    throw;
  }
}

StatusCode CodeFrom(const std::string& name) {
  if (const auto code = CodeNamed(name)) return *code;
  throw py::value_error("no gRPC status code is called " + name);
}

uint32_t CheckMethod(uint32_t method) {
  if (method >= Figures::kMethods) throw py::index_error("no such method");
  return method;
}

py::tuple CountedOf(const Figures& figures, uint32_t method) {
  const Figures::Counted counted = figures.Read(CheckMethod(method));
  py::dict codes;
  for (size_t code = 0; code < kStatusCodes; ++code) {
    // OK stands there from the start, so that a rate of it can be had.
    if (code == 0 || counted.codes[code] > 0) codes[NameOf(static_cast<StatusCode>(code))] = counted.codes[code];
  }
  return py::make_tuple(counted.in_flight, codes, py::cast(counted.buckets),
                        static_cast<double>(counted.nanoseconds) * 1e-9, counted.received_bytes, counted.sent_bytes);
}

py::dict CountersOf(const Store& store) {
  const Counters& counters = store.counters();
  py::dict all;
  const auto add = [&](const char* name, const std::atomic<uint64_t>& value) { all[name] = value.load(); };
  add("pulls", counters.pulls);
  add("pushes", counters.pushes);
  add("steps", counters.steps);
  add("pushes_applied", counters.pushes_applied);
  add("duplicates", counters.duplicates);
  add("duplicates_changed", counters.duplicates_changed);
  add("keys_pulled", counters.keys_pulled);
  add("keys_missing", counters.keys_missing);
  add("keys_pushed", counters.keys_pushed);
  add("keys_duplicate", counters.keys_duplicate);
  add("rows_created", counters.rows_created);
  add("rows_deleted", counters.rows_deleted);
  add("calls_helped", counters.calls_helped);
  add("pushes_after_pull", counters.pushes_after_pull);
  add("tables_loaded", counters.tables_loaded);
  add("nonfinite_rows", counters.nonfinite_rows);
  add("push_missing_created", counters.push_missing_created);
  add("push_missing_dropped", counters.push_missing_dropped);
  add("received_bytes", counters.received_bytes);
  add("sent_bytes", counters.sent_bytes);
  add("refused", counters.refused);
  all["rows"] = store.rows();
  all["bytes"] = store.bytes();
  return all;
}

py::dict TableInfo(const Table& table) {
  py::dict info;
  info["rows"] = table.rows();
  info["bytes"] = table.bytes();
  info["row_bytes"] = table.wire_bytes();
  info["state_bytes"] = table.layout().state_bytes();
  py::list names;
  py::list widths;  // 4-byte numbers
  for (const Slot& slot : table.checked().optimizer->slots) {
    names.append(slot.name);
    widths.append(slot.row_wise ? 1 : table.dim());
  }
  if (table.layout().step != 0) {
    names.append("step");
    widths.append(1);
  }
  info["state_names"] = names;
  info["state_widths"] = widths;
  info["learning_rate"] = table.learning_rate();
  info["weight_decay"] = table.weight_decay();
  py::dict evicted;
  for (uint32_t r = 0; r < kReasons; ++r) evicted[kReasonNames[r]] = table.evicted(static_cast<Reason>(r));
  info["evicted"] = evicted;
  return info;
}

// Rows of `table` for `keys`, of either element type; checks dtype and size before any pointer is used.
void CheckRows(const Table& table, const py::array& rows, size_t keys) {
  const bool wide = table.checked().element_type == ElementType::kInt64;
  const bool right = wide ? py::isinstance<py::array_t<int64_t>>(rows) : py::isinstance<py::array_t<float>>(rows);
  if (!right) {
    throw StatusError("BadType", Format("table '%s': rows are %s, wanted %s", table.name().c_str(),
                                        std::string(py::str(rows.dtype())).c_str(), wide ? "int64" : "float32"));
  }
  const size_t wanted = keys * table.wire_bytes();
  if (static_cast<size_t>(rows.nbytes()) != wanted || (rows.flags() & py::array::c_style) == 0) {
    throw StatusError("BadRequest", Format("table '%s': rows have %zu bytes, wanted %zu, C-contiguous",
                                           table.name().c_str(), static_cast<size_t>(rows.nbytes()), wanted));
  }
}

std::string_view RowBytes(const py::array& rows) {
  return {static_cast<const char*>(rows.data()), static_cast<size_t>(rows.nbytes())};
}

void BindFigures(py::module_& m) {
  py::class_<Figures>(m, "Figures",
                      "Requests of a server, counted and timed by method: Pull, Push and Step have the numbers 0 to 2, "
                      "and are counted by handle_pull and its like. Safe in threads.")
      .def(py::init<>())
      .def(
          "begin", [](Figures& figures, uint32_t method, uint64_t bytes) { figures.Begin(CheckMethod(method), bytes); },
          py::arg("method"), py::arg("received_bytes"))
      .def(
          "end",
          [](Figures& figures, uint32_t method, double seconds, const std::string& code, uint64_t sent_bytes) {
            if (!(seconds >= 0 && seconds <= 1e9)) throw py::value_error("a call takes 0 to 1e9 seconds");
            figures.End(CheckMethod(method), static_cast<uint64_t>(std::llround(seconds * 1e9)), CodeFrom(code),
                        sent_bytes);
          },
          py::arg("method"), py::arg("seconds"), py::arg("code"), py::arg("sent_bytes"),
          "code: the name of a gRPC status.")
      .def(
          "in_flight", [](const Figures& figures, uint32_t method) { return figures.InFlight(CheckMethod(method)); },
          py::arg("method"), "Calls of the method that have begun and not ended.")
      .def("read", &CountedOf, py::arg("method"),
           "(in_flight, calls by code, calls by bucket of time, seconds, received_bytes, sent_bytes)");
  m.def(
      "time_buckets",
      [] {
        std::vector<double> seconds;
        for (const uint64_t bound : Figures::kBounds) seconds.push_back(static_cast<double>(bound) / 1e9);
        return seconds;
      },
      "Upper bounds in seconds of the buckets of Figures.read; the last bucket is what lies beyond.");
  m.def(
      "status_code", [](const std::string& kind) { return NameOf(CodeOf(kind)); }, py::arg("kind"),
      "The gRPC status that a StatusError of that kind is counted as.");
}

void BindStore(py::module_& m) {
  py::class_<Store, std::shared_ptr<Store>> store(
      m, "Store", "The tables of one server, or of a table in this process. Safe in threads.");
  BindEviction(store);
  store
      .def(py::init([](uint64_t epoch, uint64_t memory_limit, uint64_t keys_max, uint64_t message_bytes_max,
                       uint32_t threads) {
             return std::make_shared<Store>(epoch, Limits{memory_limit, keys_max, message_bytes_max, threads});
           }),
           py::kw_only(), py::arg("epoch") = 1, py::arg("memory_limit") = 0, py::arg("keys_max") = 0,
           py::arg("message_bytes_max") = 0, py::arg("threads") = 0)
      .def_property_readonly("epoch", &Store::epoch)
      .def_property_readonly("figures", &Store::figures)
      .def(
          "set_shard_map",
          [](Store& store, const Array<uint16_t>& owners, uint16_t index, uint32_t version) {
            store.SetShardMap({owners.data(), owners.data() + owners.size()}, index, version);
          },
          py::arg("owners").noconvert(), py::arg("index"), py::arg("version"))
      .def(
          "create_table",
          [](Store& store, const std::string& name, uint32_t dim, const std::string& dtype,
             const std::string& optimizer, const Parameters& optimizer_parameters, const std::string& initializer,
             const Parameters& initializer_parameters, uint64_t seed, const std::string& non_finite,
             const std::string& push_missing, uint32_t admit_at, double admit_probability, uint64_t admit_filter_keys,
             const Parameters& eviction) {
            return store.CreateTable({name, dim, dtype, optimizer, optimizer_parameters, initializer,
                                      initializer_parameters, seed, non_finite, push_missing, admit_at,
                                      admit_probability, admit_filter_keys, eviction});
          },
          py::arg("name"), py::arg("dim"), py::arg("dtype"), py::arg("optimizer"), py::arg("optimizer_parameters"),
          py::arg("initializer"), py::arg("initializer_parameters"), py::arg("seed"), py::arg("non_finite"),
          py::arg("push_missing") = "Create", py::arg("admit_at") = 1, py::arg("admit_probability") = 1.0,
          py::arg("admit_filter_keys") = 0, py::arg("eviction") = Parameters{})
      .def(
          "set_learning_rate",
          [](Store& store, uint32_t table_id, double value) { store.FindTable(table_id).set_learning_rate(value); },
          py::arg("table_id"), py::arg("value"))
      .def(
          "set_weight_decay",
          [](Store& store, uint32_t table_id, double value) { store.FindTable(table_id).set_weight_decay(value); },
          py::arg("table_id"), py::arg("value"))
      .def(
          "table_info", [](const Store& store, uint32_t table_id) { return TableInfo(store.FindTable(table_id)); },
          py::arg("table_id"))
      .def(
          "hello",
          [](Store& store, uint64_t client_high, uint64_t client_low, uint32_t incarnation,
             std::optional<uint32_t> rank) {
            Store::Greeting greeting;
            {
              const py::gil_scoped_release release;
              greeting = store.Hello(client_high, client_low, incarnation, rank.value_or(kNoRank));
            }
            return std::tuple<uint64_t, py::bytes, uint64_t>(greeting.next_step, greeting.cursor,
                                                             greeting.durable_next);
          },
          py::arg("client_high"), py::arg("client_low"), py::arg("incarnation"), py::arg("rank") = py::none(),
          "Makes a client known or raises its incarnation: the lowest step not applied for it, the cursor kept with "
          "the step before, and the step below which all is in a committed checkpoint.")
      .def("forget", &Store::Forget, py::arg("client_high"), py::arg("client_low"))
      .def(
          "handle_pull", [](Store& store, const py::object& request) { return Handle(store, Method::kPull, request); },
          py::arg("request"))
      .def(
          "handle_push", [](Store& store, const py::object& request) { return Handle(store, Method::kPush, request); },
          py::arg("request"))
      .def(
          "handle_step", [](Store& store, const py::object& request) { return Handle(store, Method::kStep, request); },
          py::arg("request"))
      .def(
          "scan",
          [](const Store& store, uint32_t table_id, uint64_t position, uint32_t rows_max) {
            Store::Scanned scanned;
            {
              const py::gil_scoped_release release;
              scanned = store.Scan(store.FindTable(table_id), position, rows_max);
            }
            return std::tuple<py::bytes, py::bytes, uint64_t>(scanned.keys, scanned.rows, scanned.position);
          },
          py::arg("table_id"), py::arg("position"), py::arg("rows_max"))
      .def(
          "index_probes",
          [](const Store& store, uint32_t table_id) { return store.IndexProbes(store.FindTable(table_id)); },
          py::arg("table_id"), "How many buckets of the index a search for a row looks at, on average.")
      .def("counters", &CountersOf)
      .def(
          "hold",
          [](Store& store, double seconds) {
            std::vector<Store::ClientStep> begun;
            {
              const py::gil_scoped_release release;
              begun = store.Hold(seconds);
            }
            std::vector<std::tuple<uint64_t, uint64_t, uint64_t>> all;
            for (const auto& one : begun) all.emplace_back(one.client_high, one.client_low, one.next);
            return all;
          },
          py::arg("seconds"),
          "Begins no step of a ranked client for so long: (client_high, client_low, the highest step begun + 1) of "
          "each.")
      .def("release", &Store::Release, py::call_guard<py::gil_scoped_release>(), "Ends a hold.")
      .def(
          "take",
          [](Store& store, const std::vector<std::tuple<uint64_t, uint64_t, uint64_t>>& limits, double wait_s,
             bool full) {
            std::vector<Store::ClientStep> steps;
            for (const auto& [high, low, next] : limits) steps.push_back({high, low, next});
            const py::gil_scoped_release release;
            return store.Take(steps, wait_s, full);
          },
          py::arg("limits"), py::arg("wait_s"), py::arg("full"), py::keep_alive<0, 1>(),
          "Lets steps below the limits through, waits until they are whole but no longer than wait_s, and cuts.")
      .def_property_readonly("must_be_full", &Store::must_be_full)
      .def("highest_step", &Store::HighestStep, py::call_guard<py::gil_scoped_release>())
      .def(
          "load",
          [](std::shared_ptr<Store> store, const std::vector<uint16_t>& owned) {
            return std::make_shared<Loader>(std::move(store), owned);
          },
          py::arg("owned"), "A Loader of tables into this store; of rows and steps of the shards given.")
      .def(
          "pull",
          [](Store& store, uint32_t table_id, const Array<uint64_t>& keys, py::array out, bool create) {
            Table& table = store.FindTable(table_id);
            const std::string_view key_bytes = KeyBytes(keys);
            CheckRows(table, out, static_cast<size_t>(keys.size()));
            char* data = static_cast<char*>(out.mutable_data());  // throws for a read-only array
            const py::gil_scoped_release release;
            store.Pull(table, key_bytes, create ? 0u : uint32_t{kReadOnly}, data);
          },
          py::arg("table_id"), py::arg("keys").noconvert(), py::arg("out").noconvert(), py::arg("create"))
      .def(
          "push",
          [](Store& store, uint32_t table_id, const Array<uint64_t>& keys, const py::array& gradients, bool unique,
             const std::optional<Array<float>>& counts) {
            Table& table = store.FindTable(table_id);
            const std::string_view key_bytes = KeyBytes(keys);
            CheckRows(table, gradients, static_cast<size_t>(keys.size()));
            const std::string_view row_bytes = RowBytes(gradients);
            const std::string_view count_bytes = counts ? RowBytes(*counts) : std::string_view();
            const py::gil_scoped_release release;
            store.Push(table, key_bytes, row_bytes, unique ? uint32_t{kUnique} : 0u, count_bytes);
          },
          py::arg("table_id"), py::arg("keys").noconvert(), py::arg("gradients").noconvert(), py::arg("unique") = false,
          py::arg("counts") = py::none())
      .def(
          "assign",
          [](Store& store, uint32_t table_id, const Array<uint64_t>& keys, const py::array& rows) {
            Table& table = store.FindTable(table_id);
            const std::string_view key_bytes = KeyBytes(keys);
            CheckRows(table, rows, static_cast<size_t>(keys.size()));
            const std::string_view row_bytes = RowBytes(rows);
            const py::gil_scoped_release release;
            store.Push(table, key_bytes, row_bytes, kAssign);
          },
          py::arg("table_id"), py::arg("keys").noconvert(), py::arg("rows").noconvert())
      .def(
          "delete",
          [](Store& store, uint32_t table_id, const Array<uint64_t>& keys) {
            Table& table = store.FindTable(table_id);
            const std::string_view key_bytes = KeyBytes(keys);
            const py::gil_scoped_release release;
            return store.Push(table, key_bytes, {}, kDelete);
          },
          py::arg("table_id"), py::arg("keys").noconvert())
      .def(
          "contains",
          [](Store& store, uint32_t table_id, const Array<uint64_t>& keys) {
            Table& table = store.FindTable(table_id);
            const std::string_view key_bytes = KeyBytes(keys);
            Array<bool> found(keys.size());
            char* data = reinterpret_cast<char*>(found.mutable_data());
            {
              const py::gil_scoped_release release;
              store.Pull(table, key_bytes, kContains, data);
            }
            return found;
          },
          py::arg("table_id"), py::arg("keys").noconvert())
      .def(
          "state",
          [](Store& store, uint32_t table_id, const Array<uint64_t>& keys) {
            Table& table = store.FindTable(table_id);
            const std::string_view key_bytes = KeyBytes(keys);
            Array<uint8_t> state({keys.size(), static_cast<py::ssize_t>(table.layout().state_bytes())});
            char* data = reinterpret_cast<char*>(state.mutable_data());
            {
              const py::gil_scoped_release release;
              store.Pull(table, key_bytes, kState, data);
            }
            return state;
          },
          py::arg("table_id"), py::arg("keys").noconvert());
}

using LayoutTuple = std::tuple<uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t>;

LayoutTuple ToTuple(const RowLayout& layout) {
  return {layout.row_bytes, layout.step, layout.weights, layout.weight_bytes, layout.slots, layout.slot_bytes};
}

RowLayout ToLayout(const LayoutTuple& from) {
  RowLayout layout;
  std::tie(layout.row_bytes, layout.step, layout.weights, layout.weight_bytes, layout.slots, layout.slot_bytes) = from;
  return layout;
}

void BindCheckpoints(py::module_& m) {
  py::class_<Cut, std::shared_ptr<Cut>>(m, "Cut",
                                        "What a store held at one moment, read out as a checkpoint's files. Layouts "
                                        "are (row_bytes, step, weights, weight_bytes, slots, slot_bytes).")
      .def_property_readonly("aligned", &Cut::aligned)
      .def_property_readonly("full", &Cut::full)
      .def_property_readonly("pause_s", &Cut::pause_s)
      .def_property_readonly("tables",
                             [](const Cut& cut) {
                               std::vector<std::pair<uint32_t, LayoutTuple>> tables;
                               for (const Table* table : cut.tables()) {
                                 tables.emplace_back(table->id(), ToTuple(table->layout()));
                               }
                               return tables;
                             })
      .def_property_readonly(
          "clients",
          [](const Cut& cut) {
            std::vector<std::tuple<uint64_t, uint64_t, std::optional<uint32_t>, uint64_t, py::bytes>> clients;
            for (const ClientImage& client : cut.clients()) {
              const uint64_t next = client.whole.LowestOpen();
              std::string cursor;
              for (const Cursor& one : client.cursors) {
                if (one.step + 1 == next) cursor = one.bytes;
              }
              clients.emplace_back(client.high, client.low,
                                   client.rank == kNoRank ? std::nullopt : std::optional<uint32_t>(client.rank), next,
                                   py::bytes(cursor));
            }
            return clients;
          },
          "(client_high, client_low, rank, the lowest step not applied, the cursor of the step before) of each.")
      .def(
          "read",
          [](Cut& cut, std::optional<uint32_t> table_id, const py::object& out) {
            const Buffer buffer(out, true);
            const py::gil_scoped_release release;
            return cut.Read(table_id, buffer.data(), buffer.size());
          },
          py::arg("table_id"), py::arg("out"),
          "Fills `out` (at least 1 MiB + 16 bytes) with whole blocks of a table's file, or with None of the steps'; "
          "how many bytes, 0 at the end.")
      .def(
          "figures",
          [](const Cut& cut, std::optional<uint32_t> table_id) {
            const Cut::Figures figures = cut.FiguresOf(table_id);
            return std::tuple(figures.rows, figures.deleted, figures.crc, figures.bytes);
          },
          py::arg("table_id"), "(rows, deleted keys, CRC-32C of the footer's payload, bytes read) so far.")
      .def(
          "commit", [](Cut& cut) { cut.Commit(); }, py::call_guard<py::gil_scoped_release>(),
          "It is in a complete checkpoint.")
      .def(
          "abandon", [](Cut& cut) { cut.Abandon(); }, py::call_guard<py::gil_scoped_release>(),
          "It is not; the next one is full.");

  py::class_<Loader::File>(m, "LoadFile", "The blocks of one file of a checkpoint, as they come.")
      .def(
          "feed",
          [](Loader::File& file, const py::object& bytes) {
            const Buffer buffer(bytes);
            const py::gil_scoped_release release;
            return file.Feed(buffer.view());
          },
          py::arg("bytes"), "Takes the whole blocks at the beginning; how many bytes those are.")
      .def("rest", &Loader::File::Rest, py::arg("start"),
           "Its blocks from byte `start` on, for another thread; join puts them behind these.")
      .def("join", &Loader::File::Join, py::arg("rest"))
      .def_property_readonly("ended", &Loader::File::ended)
      .def_property_readonly("crc", &Loader::File::crc)
      .def_property_readonly("rows", &Loader::File::rows)
      .def_property_readonly("deleted", &Loader::File::deleted);

  py::class_<Loader, std::shared_ptr<Loader>>(m, "Loader",
                                              "Tables read from a checkpoint, beside those of a store until finish().")
      .def(
          "create_table",
          [](Loader& loader, const std::string& name, uint32_t dim, const std::string& dtype,
             const std::string& optimizer, const Parameters& optimizer_parameters, const std::string& initializer,
             const Parameters& initializer_parameters, uint64_t seed, const std::string& non_finite,
             const std::string& push_missing, uint32_t admit_at, double admit_probability, uint64_t admit_filter_keys,
             const Parameters& eviction) {
            return loader.CreateTable({name, dim, dtype, optimizer, optimizer_parameters, initializer,
                                       initializer_parameters, seed, non_finite, push_missing, admit_at,
                                       admit_probability, admit_filter_keys, eviction});
          },
          py::arg("name"), py::arg("dim"), py::arg("dtype"), py::arg("optimizer"), py::arg("optimizer_parameters"),
          py::arg("initializer"), py::arg("initializer_parameters"), py::arg("seed"), py::arg("non_finite"),
          py::arg("push_missing") = "Create", py::arg("admit_at") = 1, py::arg("admit_probability") = 1.0,
          py::arg("admit_filter_keys") = 0, py::arg("eviction") = Parameters{})
      .def(
          "layout", [](const Loader& loader, uint32_t table_id) { return ToTuple(loader.LayoutOf(table_id)); },
          py::arg("table_id"))
      .def(
          "begin",
          [](const std::shared_ptr<Loader>& loader, std::optional<uint32_t> table_id,
             const std::optional<LayoutTuple>& layout, bool delta, bool weights_only, uint64_t start, uint64_t rows) {
            Loader::FileOptions options;
            options.table_id = table_id;
            if (layout) options.layout = ToLayout(*layout);
            options.delta = delta;
            options.weights_only = weights_only;
            options.start = start;
            options.rows = rows;
            return Loader::Begin(loader, options);
          },
          py::arg("table_id"), py::arg("layout"), py::arg("delta"), py::arg("weights_only") = false,
          py::arg("start") = 0, py::arg("rows") = 0, "A file of a table's rows, or with None of steps.")
      .def_property_readonly("rows", &Loader::rows)
      .def("finish", &Loader::Finish, py::call_guard<py::gil_scoped_release>(), "Puts all tables in the store.");

  py::class_<FrozenRows>(m, "FrozenRows", "Rows of a table of a checkpoint, read where its files lie in memory.")
      .def(py::init([](const LayoutTuple& layout, const std::string& dtype) {
             return std::make_unique<FrozenRows>(ToLayout(layout), ElementTypeNamed(dtype));
           }),
           py::arg("layout"), py::arg("dtype"))
      .def(
          "add",
          [](FrozenRows& rows, const py::object& file, size_t start) {
            const Buffer buffer(file);
            if (start > buffer.size()) throw py::value_error("the file ends before its first block");
            const py::gil_scoped_release release;
            rows.Add(buffer.view().substr(start), start);
          },
          py::arg("file"), py::arg("start"), py::keep_alive<1, 2>(),
          "The blocks of a file that lie from `start` on, in place; the object is kept.")
      .def("__len__", &FrozenRows::rows)
      .def(
          "read",
          [](const FrozenRows& rows, const Array<uint64_t>& keys, py::array out) {
            const std::string_view key_bytes = KeyBytes(keys);
            char* data = static_cast<char*>(out.mutable_data());
            const py::gil_scoped_release release;
            rows.Read(key_bytes, data);
          },
          py::arg("keys").noconvert(), py::arg("out").noconvert(), "out: contiguous, of the table's rows.")
      .def(
          "contains",
          [](const FrozenRows& rows, const Array<uint64_t>& keys) {
            const std::string_view key_bytes = KeyBytes(keys);
            Array<bool> found(keys.size());
            char* data = reinterpret_cast<char*>(found.mutable_data());
            {
              const py::gil_scoped_release release;
              rows.Contains(key_bytes, data);
            }
            return found;
          },
          py::arg("keys").noconvert())
      .def(
          "scan",
          [](const FrozenRows& rows, uint64_t position, uint32_t most) {
            std::vector<uint64_t> keys;
            std::string weights;
            {
              const py::gil_scoped_release release;
              position = rows.Scan(position, most, &keys, &weights);
            }
            return std::tuple(ToArray(keys), py::bytes(weights), position);
          },
          py::arg("position"), py::arg("most"));
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "Tablebay's tables, wire format and client-side routing in C++.";

  // args = (kind, message): the binding's own class, since a pybind11 exception has the message alone.
  static PyObject* const status_error = PyErr_NewException("tablebay.native._core.StatusError", nullptr, nullptr);
  m.attr("StatusError") = py::handle(status_error);
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const StatusError& error) {
      PyErr_SetObject(status_error, py::make_tuple(error.kind(), error.what()).ptr());
    }
  });

  m.attr("SHARDS") = kShards;
  m.attr("STRIPES") = kStripes;
  m.attr("EVICTION_REASONS") = py::tuple(py::cast(kReasonNames));
  m.attr("UNIQUE") = static_cast<uint32_t>(kUnique);
  m.attr("READ_ONLY") = static_cast<uint32_t>(kReadOnly);
  m.attr("ASSIGN") = static_cast<uint32_t>(kAssign);
  m.attr("DELETE") = static_cast<uint32_t>(kDelete);
  m.attr("STATE") = static_cast<uint32_t>(kState);
  m.attr("CONTAINS") = static_cast<uint32_t>(kContains);
  m.attr("SHOWS") = static_cast<uint32_t>(kShows);
  m.def("version", [] { return TABLEBAY_VERSION; });
#ifdef TABLEBAY_FAILPOINTS
  m.def("failpoint", &Failpoint, py::arg("name"));
#endif
  m.def("commit", [] { return TABLEBAY_COMMIT; });
  m.def(
      "use_processors", [](uint32_t processors) { Crew::OfProcess().Use(processors); }, py::arg("processors"),
      "On how many processors large calls run at once, whatever else runs on them; 0, as it begins: on those that are "
      "idle.");
  m.def("idle_processors", [] { return Crew::OfProcess().helpers(); }, "How many would help with a large call now.");
  m.def("processors_of_quota", &ProcessorsOfQuota, py::arg("folder"),
        "How many whole processors' time a control group's folder allows; 2^32 - 1 where it sets no limit. For tests.");
  m.def(
      "jobs_helped", [] { return Crew::OfProcess().jobs_helped(); },
      "Parts of this process's large calls that idle processors helped with.");
  m.def("instruction_sets", &InstructionSets, "Those this CPU can use, best last.");
  m.def("instruction_set", [] { return ActiveKernels().name; });
  m.def("use_instruction_set", &UseInstructionSet, py::arg("name"));
  m.def(
      "hash_keys",
      [](const Array<uint64_t>& keys) {
        Array<uint64_t> hashes(keys.size());
        ActiveKernels().hash_keys(KeyBytes(keys).data(), static_cast<size_t>(keys.size()), hashes.mutable_data());
        return hashes;
      },
      py::arg("keys").noconvert());
  m.def(
      "shard_keys",
      [] {
        Array<uint64_t> keys(kShards);
        for (uint32_t shard = 0; shard < kShards; ++shard) keys.mutable_data()[shard] = KeyOfShard(shard);
        return keys;
      },
      "A key of each shard, under which a table of days has the shard's row.");
  m.def(
      "shards_of",
      [](const Array<uint64_t>& keys) {
        const std::string_view key_bytes = KeyBytes(keys);
        Array<uint16_t> shards(keys.size());
        for (py::ssize_t i = 0; i < keys.size(); ++i) {
          const uint64_t hash = HashKey(LoadKey(key_bytes.data(), static_cast<uint64_t>(i)));
          shards.mutable_data()[i] = static_cast<uint16_t>(ShardOfHash(hash));
        }
        return shards;
      },
      py::arg("keys").noconvert());
  m.def(
      "first_nonfinite",
      [](const Array<float>& rows) -> std::optional<py::ssize_t> {
        if (rows.ndim() != 2) throw StatusError("BadRequest", "rows want two dimensions");
        const auto count = static_cast<size_t>(rows.shape(0));
        const auto dim = static_cast<uint32_t>(rows.shape(1));
        const auto* data = reinterpret_cast<const char*>(rows.data());
        size_t found = count;
        if (dim > 0) {
          const py::gil_scoped_release release;
          found = BulkFirstNonFinite(data, count, dim);
        }
        if (found == count) return std::nullopt;
        return static_cast<py::ssize_t>(found);
      },
      py::arg("rows").noconvert(), "Index of the first row of float32 (n, dim) with a NaN or an infinity.");
  m.def(
      "crc32c",
      [](const py::object& bytes, uint32_t initial) {
        const Buffer buffer(bytes);
        const py::gil_scoped_release release;
        return Crc32c(buffer.data(), buffer.size(), initial);
      },
      py::arg("data"), py::arg("initial") = 0);
  m.def(
      "crc32c_portable",
      [](const py::object& bytes, uint32_t initial) {
        const Buffer buffer(bytes);
        return Crc32cPortable(buffer.data(), buffer.size(), initial);
      },
      py::arg("data"), py::arg("initial") = 0, "The way without instructions of the CPU; for tests.");
  m.def(
      "readdress",
      [](const py::bytes& request, uint64_t epoch) {
        const std::string_view from = request;
        const NewBytes copy(from.size());
        std::memcpy(copy.data(), from.data(), from.size());
        Readdress(copy.data(), copy.size, epoch);
        return copy.object;
      },
      py::arg("request"), py::arg("epoch"), "The request, with another epoch of the server in it.");
  m.def("table_id", [](const std::string& name) { return Crc32c(name.data(), name.size()); }, py::arg("name"));
  BindFigures(m);
  BindCheckpoints(m);
  BindStore(m);
  BindClient(m);
  BindHttp2(m);
}

}  // namespace tablebay
