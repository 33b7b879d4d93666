// The client's side of calls, as Python sees it.
#include <pybind11/stl.h>

#include <optional>

#include "python_arrays.h"
#include "tablebay/call.h"
#include "tablebay/plan.h"
#include "tablebay/replay_memory.h"

namespace py = pybind11;

namespace tablebay {

void BindPooling(py::module_& m);  // pooling_bindings.cc
void BindReplay(py::module_& m);   // replay_bindings.cc

namespace {

// A Call with the Python objects that its pointers lead into.
class PyCall {
 public:
  PyCall(const std::string& kind, const py::list& pulls, const py::list& pushes, uint64_t message_bytes_max,
         uint32_t cut_into) {
    const Method method = MethodNamed(kind);
    std::vector<Call::Pull> pull_parts;
    for (const py::handle& item : pulls) {
      const auto entry = item.cast<py::tuple>();
      if (entry.size() != 6) throw py::value_error("a pull is (table_id, dim, row_bytes, flags, plan, out)");
      auto plan = entry[4].cast<std::shared_ptr<Plan>>();
      auto out = entry[5].cast<py::array>();
      const auto row_bytes = entry[2].cast<uint32_t>();
      Expect("out", out, plan->count() * uint64_t{row_bytes});
      if (!out.writeable()) throw StatusError("BadRequest", "out is read-only, wanted a writable array");
      kept_.append(out);
      pull_parts.push_back({entry[0].cast<uint32_t>(), entry[1].cast<uint32_t>(), row_bytes, entry[3].cast<uint32_t>(),
                            std::move(plan), static_cast<char*>(out.mutable_data())});
    }
    std::vector<Call::Push> push_parts;
    for (const py::handle& item : pushes) {
      const auto entry = item.cast<py::tuple>();
      if (entry.size() != 6 && entry.size() != 7) {
        throw py::value_error("a push is (table_id, dim, row_bytes, flags, plan, rows[, counts])");
      }
      auto plan = entry[4].cast<std::shared_ptr<Plan>>();
      auto row_bytes = entry[2].cast<uint32_t>();
      const auto dim = entry[1].cast<uint32_t>();
      const char* data = nullptr;
      bool is_int64 = false;
      if (!entry[5].is_none()) {
        const auto rows = entry[5].cast<py::array>();
        is_int64 = py::isinstance<py::array_t<int64_t>>(rows);
        if (!is_int64 && !py::isinstance<py::array_t<float>>(rows)) {
          throw StatusError("BadType",
                            Format("rows are %s, wanted float32 or int64", std::string(py::str(rows.dtype())).c_str()));
        }
        if (uint64_t{row_bytes} != uint64_t{dim} * (is_int64 ? 8 : 4)) {
          throw StatusError("BadType", Format("rows are %s, and the table's have %u bytes for dim %u",
                                              std::string(py::str(rows.dtype())).c_str(), row_bytes, dim));
        }
        Expect("rows", rows, plan->count() * uint64_t{row_bytes});
        kept_.append(rows);
        data = static_cast<const char*>(rows.data());
      } else {
        row_bytes = 0;
      }
      const char* counts = nullptr;
      if (entry.size() == 7 && !entry[6].is_none()) {
        const auto given = entry[6].cast<Array<float>>();
        Expect("counts", given, plan->count() * uint64_t{kCountsBytes});
        kept_.append(given);
        counts = reinterpret_cast<const char*>(given.data());
      }
      push_parts.push_back({entry[0].cast<uint32_t>(), dim, row_bytes, entry[3].cast<uint32_t>(), std::move(plan), data,
                            is_int64, counts});
    }
    call_.emplace(method, std::move(pull_parts), std::move(push_parts), message_bytes_max, cut_into);
  }

  std::vector<uint32_t> Servers() const { return call_->Servers(); }

  size_t Pieces(uint32_t server) const { return call_->Pieces(server); }

  py::object Request(uint32_t server, size_t piece, uint64_t client_high, uint64_t client_low, uint32_t incarnation,
                     uint32_t shard_map_version, uint64_t epoch, uint64_t step, uint64_t oldest_step,
                     const py::bytes& cursor, std::optional<KeptRequest*> keep) {
    if (piece >= call_->Pieces(server)) throw py::index_error("no such piece");
    const std::string_view cursor_view = cursor;
    const Call::Header header{
        {client_high, client_low, incarnation, shard_map_version, epoch}, step, oldest_step, cursor_view};
    NewBytes request(call_->RequestSize(server, piece, cursor_view.size()));
    {
      const py::gil_scoped_release release;
      call_->WriteRequest(server, piece, header, request.data(), keep.value_or(nullptr));
    }
    return std::move(request.object);
  }

  py::tuple Accept(uint32_t server, size_t piece, const py::bytes& message) {
    if (piece >= call_->Pieces(server)) throw py::index_error("no such piece");
    const std::string_view bytes = message;
    Response response;
    {
      // A checksum of the whole answer.
      const py::gil_scoped_release release;
      response = call_->Accept(server, piece, bytes);
    }
    kept_.append(message);
    return py::make_tuple(response.epoch, response.shard_map_version, response.applied_shards,
                          response.duplicate_shards, response.durable_next);
  }

  void Finish() {
    const py::gil_scoped_release release;
    call_->Finish();
  }

 private:
  static Method MethodNamed(const std::string& name) {
    if (name == "Pull") return Method::kPull;
    if (name == "Push") return Method::kPush;
    if (name == "Step") return Method::kStep;
    throw py::value_error("a call is a Pull, a Push or a Step; found " + name);
  }

  static void Expect(const char* what, const py::array& array, uint64_t bytes) {
    if ((array.flags() & py::array::c_style) == 0) {
      throw StatusError("BadRequest", Format("%s is not C-contiguous", what));
    }
    if (static_cast<uint64_t>(array.nbytes()) != bytes) {
      throw StatusError("BadRequest", Format("%s has %zu bytes, wanted %llu", what, static_cast<size_t>(array.nbytes()),
                                             static_cast<unsigned long long>(bytes)));
    }
  }

  std::optional<Call> call_;
  py::list kept_;
};

}  // namespace

void BindClient(py::module_& m) {
  py::class_<Plan, std::shared_ptr<Plan>>(
      m, "Plan", "Unique keys of a call in order of (server, shard), and where each given key went.")
      .def_property_readonly("count", &Plan::count)
      .def_property_readonly("unique", &Plan::unique)
      .def("keys", [](const Plan& plan) { return ToArray(plan.keys); })
      .def("inverse", [](const Plan& plan) { return ToArray(plan.inverse); })
      .def(
          "is_of",
          [](const Plan& plan, const Array<uint64_t>& keys) {
            const std::string_view key_bytes = KeyBytes(keys);
            const py::gil_scoped_release release;
            return plan.IsOf(key_bytes);
          },
          py::arg("keys").noconvert(), "Whether it was made of these keys, in this order.")
      .def(
          "intersect",
          [](const Plan& plan, const Array<uint64_t>& keys) {
            const std::string_view key_bytes = KeyBytes(keys);
            std::vector<uint32_t> positions;
            {
              const py::gil_scoped_release release;
              positions = Intersect(plan, key_bytes);
            }
            return ToArray(positions);
          },
          py::arg("keys").noconvert(), "Plan positions whose key is among `keys`, ascending.");

  py::class_<Router, std::shared_ptr<Router>>(m, "Router", "Which server has which shard.")
      .def(py::init([](const Array<uint16_t>& owners, uint32_t servers) {
             return std::make_shared<Router>(std::vector<uint16_t>(owners.data(), owners.data() + owners.size()),
                                             servers);
           }),
           py::arg("owners").noconvert(), py::arg("servers"))
      .def(
          "plan",
          [](const std::shared_ptr<Router>& router, const Array<uint64_t>& keys) {
            const std::string_view key_bytes = KeyBytes(keys);
            const py::gil_scoped_release release;
            return std::make_shared<Plan>(MakePlan(router, key_bytes));
          },
          py::arg("keys").noconvert());

  BindPooling(m);
  BindReplay(m);
  py::class_<PyCall>(m, "Call", "One call to all servers: its requests, its answers, the rows gathered from them.")
      .def(py::init<const std::string&, const py::list&, const py::list&, uint64_t, uint32_t>(), py::arg("kind"),
           py::arg("pulls"), py::arg("pushes"), py::arg("message_bytes_max"), py::arg("cut_into") = 1,
           "cut_into: how many requests a large share of a server is at least.")
      .def("servers", &PyCall::Servers)
      .def("pieces", &PyCall::Pieces, py::arg("server"), "How many requests a server's share is.")
      .def("request", &PyCall::Request, py::arg("server"), py::arg("piece"), py::arg("client_high"),
           py::arg("client_low"), py::arg("incarnation"), py::arg("shard_map_version"), py::arg("epoch"),
           py::arg("step"), py::arg("oldest_step"), py::arg("cursor"), py::arg("keep") = py::none(),
           "Bytes; the same are put in `keep`.")
      .def("accept", &PyCall::Accept, py::arg("server"), py::arg("piece"), py::arg("response"),
           "(epoch, shard_map_version, applied_shards, duplicate_shards, durable_next) of an answer, which is kept for "
           "finish().")
      .def("finish", &PyCall::Finish);
}

}  // namespace tablebay
