// Calls over HTTP/2 as Python sees them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <tuple>
#include <utility>

#include "tablebay/http2_call.h"
#include "tablebay/http2_host.h"
#include "tablebay/http2_port.h"

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

// Gives the next so many of the bytes.
void Feed(Http2Reader& reader, size_t piece, std::string_view* left) {
  size_t taken = 0;
  for (const iovec& part : reader.Space()) {
    const size_t n = std::min({part.iov_len, std::max<size_t>(piece, 1) - taken, left->size()});
    if (n > 0) std::memcpy(part.iov_base, left->data(), n);
    left->remove_prefix(n);
    taken += n;
  }
  reader.Took(taken);
}

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
    Feed(http, piece, &left);
  }
  if (!http.status()) return py::none();
  return ToTuple(*http.status(), answer);
}

// Drops a reference wherever it is dropped.
std::shared_ptr<const void> Keep(py::object object) {
  return {object.release().ptr(), [](PyObject* kept) {
            const py::gil_scoped_acquire acquire;
            Py_DECREF(kept);
          }};
}

// Its threads may wait for Python's lock when it ends.
struct PyHttp2Port {
  std::unique_ptr<Http2Port> port;
  ~PyHttp2Port() {
    const py::gil_scoped_release release;
    port.reset();
  }
};

// A port whose handler takes a path and a request's bytes, and returns the answer's bytes or what became of it instead:
// (gRPC code, message, the error's class).
std::unique_ptr<PyHttp2Port> MakePort(int fd, const py::function& handler, uint64_t message_bytes_max,
                                      uint32_t calls_max, uint32_t connections_max, uint32_t streams_max,
                                      uint64_t metadata_bytes_max, const py::object& tls) {
  const auto keeps = Keep(handler);
  const auto handle = [keeps](const std::string& path, std::string_view request,
                              const std::string& peer) -> Http2Port::Answer {
    const py::gil_scoped_acquire acquire;
    try {
      const auto handler = py::reinterpret_borrow<py::function>(
          static_cast<PyObject*>(const_cast<void*>(static_cast<const void*>(keeps.get()))));
      const auto view = py::memoryview::from_memory(request.data(), static_cast<py::ssize_t>(request.size()));
      const py::object answer = handler(path, view, py::bytes(peer));
      // Its bytes are another request's soon.
      view.attr("release")();
      if (py::isinstance<py::bytes>(answer)) {
        const std::string_view bytes{PyBytes_AS_STRING(answer.ptr()),
                                     static_cast<size_t>(PyBytes_GET_SIZE(answer.ptr()))};
        return {{kGrpcOk, {}}, bytes, Keep(answer)};
      }
      auto [code, message, kind] = answer.cast<std::tuple<uint32_t, std::string, std::string>>();
      if (kind.empty()) return {{code, std::move(message)}, {}};
      return {{code, std::move(message), std::move(kind)}, {}};
    } catch (const py::error_already_set& error) {
      return {{kGrpcInternal, "a fault in the server"}, {}};
    } catch (const std::exception& error) {
      return {{kGrpcInternal, "a fault in the server"}, {}};
    }
  };
  std::function<std::shared_ptr<const TlsContext>()> contexts;
  if (!tls.is_none()) {
    contexts = [keeps = Keep(tls)] {
      const py::gil_scoped_acquire acquire;
      try {
        const auto of_now = py::reinterpret_borrow<py::function>(
            static_cast<PyObject*>(const_cast<void*>(static_cast<const void*>(keeps.get()))));
        return of_now().cast<std::shared_ptr<const TlsContext>>();
      } catch (const py::error_already_set& error) {
        throw std::runtime_error("no certificate");
      }
    };
  }
  auto made = std::make_unique<PyHttp2Port>();
  made->port = std::make_unique<Http2Port>(Http2Port::Options{fd, message_bytes_max, calls_max, connections_max,
                                                              streams_max, metadata_bytes_max, std::move(contexts)},
                                           handle);
  return made;
}

// What a port makes of the bytes that a client sends, given in pieces: the calls that came whole, and what it owes.
py::tuple ReadRequests(const py::bytes& bytes, size_t piece, uint64_t message_bytes_max) {
  const std::string_view all = bytes;
  py::list calls;
  Http2Host host(
      {message_bytes_max, 16, 8192}, [](size_t size) { return Message{std::make_unique<char[]>(size), size, size}; },
      [](Message) {});
  std::string owed;
  for (std::string_view left = all; !left.empty();) {
    Feed(host, piece, &left);
    while (auto call = host.Next()) {
      calls.append(py::make_tuple(call->stream, py::bytes(call->path), py::bytes(call->message.view())));
      host.Close(call->stream);
    }
    owed += std::exchange(host.owed(), {});
  }
  return py::make_tuple(calls, py::bytes(owed));
}

}  // namespace

void BindHttp2(py::module_& m) {
  py::class_<TlsContext, std::shared_ptr<TlsContext>>(
      m, "TlsContext", "What one end of connections shows and asks for: its key and certificate, and whom it trusts.")
      .def(py::init([](bool server, const py::bytes& key, const py::bytes& certificate, const py::bytes& authorities) {
             return std::make_shared<TlsContext>(server ? TlsContext::End::kServer : TlsContext::End::kClient,
                                                 TlsContext::Credentials{key, certificate, authorities});
           }),
           py::kw_only(), py::arg("server"), py::arg("key"), py::arg("certificate"), py::arg("authorities"),
           "PEM texts. Raises StatusError for what is no key, certificate or authority.");
  m.def("tls_missing", [] { return TlsMissing(); }, "Why the native core can speak no TLS here; empty where it can.");
  py::class_<PyHttp2Call> call(m, "Http2Call", "A call whose request has been sent.");
  py::class_<Http2Server, std::shared_ptr<Http2Server>>(m, "Http2Server", "Connections to one gRPC server.")
      .def(py::init([](const std::string& host, uint16_t port, const std::string& user_agent,
                       uint64_t message_bytes_max, std::optional<std::shared_ptr<TlsContext>> tls) {
             const bool bare = host.find(':') != std::string::npos;
             const std::string name = bare ? "[" + host + "]" : host;
             return std::make_shared<Http2Server>(Http2Server::Options{
                 host, port, name + ":" + std::to_string(port), user_agent, message_bytes_max, tls.value_or(nullptr)});
           }),
           py::arg("host"), py::arg("port"), py::arg("user_agent"), py::arg("message_bytes_max"),
           py::arg("tls") = py::none())
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

  py::class_<PyHttp2Port>(m, "Http2Port",
                          "Answers unary gRPC calls on a listening socket, whose number is this object's now.")
      .def(py::init(&MakePort), py::arg("fd"), py::arg("handler"), py::kw_only(), py::arg("message_bytes_max"),
           py::arg("calls_max"), py::arg("connections_max"), py::arg("streams_max"), py::arg("metadata_bytes_max"),
           py::arg("tls") = py::none(),
           "handler: of a path, a request's bytes, which it must not keep, and the caller's certificate in PEM, empty "
           "without TLS; returns the answer's bytes, or (gRPC code, message, the error's class). tls: gives the "
           "TlsContext of a new connection.")
      .def("start", [](PyHttp2Port& self) { self.port->Start(); })
      .def(
          "stop", [](PyHttp2Port& self, double grace_s) { return self.port->Stop(grace_s); }, py::arg("grace_s"),
          py::call_guard<py::gil_scoped_release>(),
          "Refuses new calls, waits for those under way, and ends all connections; whether all had ended in time.");

  m.def("read_http2_requests", &ReadRequests, py::arg("data"), py::arg("piece"), py::arg("message_bytes_max"),
        "What a port makes of the bytes that a client sends, given in pieces: the calls (stream, path, message) and "
        "the frames it owes. For tests.");

  m.def("read_http2_answer", &ReadAnswer, py::arg("data"), py::arg("piece"), py::arg("message_bytes_max"),
        "What a call makes of the bytes that its server sends, given in pieces; None while it has no result. For "
        "tests.");
}

}  // namespace tablebay
