// A port that answers unary gRPC calls over TCP, plain or with TLS.
//
// Threads wait for whatever connection has something to read. One that has read a whole request answers it, in the same
// thread, and meanwhile another may read from the same connection; so that no thread waits for a slow sender, a call
// that takes long is in nobody's way, and between the last byte of a request and the first of its answer no thread
// waits for another. Threads are made as calls need them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "tablebay/http2.h"
#include "tablebay/tls.h"

namespace tablebay {

class Http2Port {
 public:
  struct Options {
    int fd;  // listening, and this object's from now on
    uint64_t message_bytes_max;
    uint32_t calls_max;  // under way at once; more are refused with RESOURCE_EXHAUSTED
    uint32_t connections_max;
    uint32_t streams_max;  // of one connection
    uint64_t metadata_bytes_max;
    // Asked before each handshake. Null: plain.
    std::function<std::shared_ptr<const TlsContext>()> tls{};
  };
  struct Answer {
    CallStatus status;
    std::string_view message;             // where the status is OK
    std::shared_ptr<const void> keeps{};  // the message's bytes
  };
  // Answers a request. Called in any thread, several at once. peer: the caller's certificate, PEM; empty without TLS.
  using Handler = std::function<Answer(const std::string& path, std::string_view request, const std::string& peer)>;

  Http2Port(const Options& options, Handler handler);
  // Stops without grace.
  ~Http2Port();
  Http2Port(const Http2Port&) = delete;
  Http2Port& operator=(const Http2Port&) = delete;

  void Start();
  // Refuses new calls, waits for those under way for so long, and ends all connections. Whether all had ended in time.
  bool Stop(double grace_s);

 private:
  class State;
  const std::shared_ptr<State> state_;
};

}  // namespace tablebay
