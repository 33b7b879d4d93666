// Unary gRPC calls over TCP, plain or with TLS, each in its caller's thread: no thread of its own, no call beside
// another on one connection. A call takes an idle connection to its server, or makes one, and gives it back when it is
// over.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "tablebay/http2.h"
#include "tablebay/tls.h"

namespace tablebay {

class Http2Connection;

// Called some twenty times a second while a call waits; what it throws ends the call.
using Tick = std::function<void()>;

// The connections to one server. Safe in threads.
class Http2Server {
 public:
  struct Options {
    std::string host;  // a name or an address
    uint16_t port;
    std::string authority;
    std::string user_agent;
    uint64_t message_bytes_max;
    std::shared_ptr<const TlsContext> tls{};  // null: plain
  };
  explicit Http2Server(Options options) : options_(std::move(options)) {}
  Http2Server(const Http2Server&) = delete;
  Http2Server& operator=(const Http2Server&) = delete;

  const Options& options() const { return options_; }

  // Ends every connection; calls under way become Unavailable. Calls that follow make new ones, unless `for_good`.
  void Drop(bool for_good);

 private:
  friend class Http2Call;
  // An idle one that the server has not ended; null when there is none.
  std::shared_ptr<Http2Connection> Idle();
  // One to be opened, on which Drop has effect from now on. Null when dropped for good.
  std::shared_ptr<Http2Connection> New();
  // Back from a call; kept if it can serve another.
  void GiveBack(const std::shared_ptr<Http2Connection>& connection, bool clean);

  const Options options_;
  std::mutex mutex_;
  std::vector<std::shared_ptr<Http2Connection>> idle_;
  std::unordered_set<std::shared_ptr<Http2Connection>> busy_;
  bool closed_ = false;
};

// One call. Send and Wait belong to one thread each, one after the other; Cancel may come from any.
class Http2Call {
 public:
  // The request's bytes must stay until Wait has returned.
  Http2Call(std::shared_ptr<Http2Server> server, std::string path, std::string_view request, double timeout_s);
  ~Http2Call();
  Http2Call(const Http2Call&) = delete;
  Http2Call& operator=(const Http2Call&) = delete;

  // Connects if need be and sends the request, all of it unless the call fails before; Wait says how.
  void Send(const Http2Client::Allocate& allocate, const Tick& tick);
  // What became of it; the answer's message lies where `allocate` made room, if the status is OK.
  const CallStatus& Wait(const Tick& tick);
  // Wakes Wait, which then says that the call was cancelled.
  void Cancel();

 private:
  using Clock = std::chrono::steady_clock;

  void Guard(const std::function<void()>& work);
  void End(bool clean);
  void Drive(bool until_sent, const Tick& tick);

  const std::shared_ptr<Http2Server> server_;
  const std::string path_;
  const std::string_view request_;
  const Clock::time_point deadline_;
  std::array<char, 5> prefix_;
  size_t sent_ = 0;    // of prefix and request
  bool torn_ = false;  // the answer came while a frame was half sent
  std::optional<CallStatus> status_;
  std::mutex mutex_;  // of connection_, for Cancel
  std::shared_ptr<Http2Connection> connection_;
};

}  // namespace tablebay
