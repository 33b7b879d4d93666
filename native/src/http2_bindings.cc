// Calls over HTTP/2 as Python sees them.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "tablebay/http2_call.h"

namespace py = pybind11;

namespace tablebay {
namespace {

py::bytes NewBytes(size_t bytes) {
  auto object = py::reinterpret_steal<py::bytes>(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(bytes)));
  if (!object) throw py::error_already_set();
  return object;
}

py::str Text(std::string_view bytes) {
  auto text = py::reinterpret_steal<py::str>(
      PyUnicode_DecodeUTF8(bytes.data(), static_cast<Py_ssize_t>(bytes.size()), "replace"));
  if (!text) throw py::error_already_set();
  return text;
}

py::tuple ToTuple(const CallStatus& status, py::object message) {
  py::object kind = py::none();
  if (status.kind) kind = Text(*status.kind);
  if (status.code != kGrpcOk) message = py::none();
  return py::make_tuple(status.code, Text(status.message), kind, message);
}

// Ctrl-C ends a call that waits.
void CheckSignals() {
  const py::gil_scoped_acquire acquire;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

class PyHttp2Call {
 public:
  PyHttp2Call(std::shared_ptr<Http2Server> server, std::string path, py::bytes request, double timeout_s)
      : request_(std::move(request)), call_(std::move(server), std::move(path), request_, timeout_s) {
    const auto allocate = [this](size_t bytes) {
      const py::gil_scoped_acquire acquire;
      answer_ = NewBytes(bytes);
      return PyBytes_AS_STRING(answer_.ptr());
    };
    const py::gil_scoped_release release;
    call_.Send(allocate, CheckSignals);
  }

  py::tuple Result() {
    const CallStatus* status = nullptr;
    {
      const py::gil_scoped_release release;
      status = &call_.Wait(CheckSignals);
    }
    return ToTuple(*status, answer_);
  }

  void Cancel() { call_.Cancel(); }

 private:
  py::bytes request_;
  py::object answer_ = py::none();
  Http2Call call_;
};

// Reads what a server might send as answer to a first call, in pieces of so many bytes.
py::object ReadAnswer(const py::bytes& bytes, size_t piece, uint64_t message_bytes_max) {
  const std::string_view all = bytes;
  py::object answer = py::none();
  Http2Client http(message_bytes_max);
  http.Begin({"server", "/service/Method", "test", 1000}, [&](size_t size) {
    answer = NewBytes(size);
    return PyBytes_AS_STRING(answer.ptr());
  });
  std::array<char, 9> head;
  http.AppendDataHead(0, true, &head);
  for (std::string_view left = all; !left.empty() && !http.status();) {
    auto space = http.Space();
    size_t taken = 0;
    for (const iovec& part : space) {
      const size_t n = std::min({part.iov_len, std::max<size_t>(piece, 1) - taken, left.size()});
      if (n > 0) std::memcpy(part.iov_base, left.data(), n);
      left.remove_prefix(n);
      taken += n;
    }
    http.Took(taken);
  }
  if (!http.status()) return py::none();
  return ToTuple(*http.status(), answer);
}

}  // namespace

void BindHttp2(py::module_& m) {
  py::class_<PyHttp2Call> call(m, "Http2Call", "A call whose request has been sent.");
  py::class_<Http2Server, std::shared_ptr<Http2Server>>(m, "Http2Server", "Plaintext connections to one gRPC server.")
      .def(py::init(
               [](const std::string& host, uint16_t port, const std::string& user_agent, uint64_t message_bytes_max) {
                 const bool bare = host.find(':') != std::string::npos;
                 const std::string name = bare ? "[" + host + "]" : host;
                 return std::make_shared<Http2Server>(Http2Server::Options{
                     host, port, name + ":" + std::to_string(port), user_agent, message_bytes_max});
               }),
           py::arg("host"), py::arg("port"), py::arg("user_agent"), py::arg("message_bytes_max"))
      .def(
          "call",
          [](std::shared_ptr<Http2Server> server, const std::string& path, py::bytes request, double timeout_s) {
            return std::make_unique<PyHttp2Call>(std::move(server), path, std::move(request), timeout_s);
          },
          py::arg("path"), py::arg("request"), py::arg("timeout_s"),
          "Sends a request; what comes of it, failures to connect included, is the call's result().")
      .def(
          "drop", [](Http2Server& server, bool for_good) { server.Drop(for_good); }, py::arg("for_good"),
          py::call_guard<py::gil_scoped_release>(),
          "Ends every connection, and calls under way with them; later calls fail too if it is for good.");

  call.def("result", &PyHttp2Call::Result,
           "Waits for (gRPC code, message, the error's class as the server names it or None, answer or None).")
      .def("cancel", &PyHttp2Call::Cancel, py::call_guard<py::gil_scoped_release>(), "Wakes who waits for the result.");

  m.def("read_http2_answer", &ReadAnswer, py::arg("data"), py::arg("piece"), py::arg("message_bytes_max"),
        "What a call makes of the bytes that its server sends, given in pieces; None while it has no result. For "
        "tests.");
}

}  // namespace tablebay
