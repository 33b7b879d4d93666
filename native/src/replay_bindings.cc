// What a client keeps to be sent again, as Python sees it.
#include <pybind11/pybind11.h>

#include "tablebay/replay_memory.h"

namespace py = pybind11;

namespace tablebay {

void BindReplay(py::module_& m) {
  py::class_<ReplayMemory, std::shared_ptr<ReplayMemory>>(
      m, "ReplayMemory", "Memory of requests that are kept, which is used over and over. Safe in threads.")
      .def(py::init<uint64_t>(), py::arg("bytes_max"))
      .def_property_readonly("bytes", &ReplayMemory::bytes, "Taken from the system.");
  py::class_<KeptRequest>(m, "KeptRequest", "A request's bytes, whose memory is given back with it.")
      .def(py::init<std::shared_ptr<ReplayMemory>>(), py::arg("memory"))
      .def("__len__", &KeptRequest::size)
      .def(
          "write",
          [](KeptRequest& kept, const py::bytes& content) {
            const std::string_view bytes = content;
            kept.Resize(bytes.size());
            KeepingCopy(bytes.data(), &kept).Finish();
          },
          py::arg("content"), "Keep these bytes, and none that were kept before.")
      .def("__bytes__", [](const KeptRequest& kept) {
        auto bytes =
            py::reinterpret_steal<py::bytes>(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(kept.size())));
        if (!bytes) throw py::error_already_set();
        kept.CopyTo(PyBytes_AS_STRING(bytes.ptr()));
        return bytes;
      });
}

}  // namespace tablebay
