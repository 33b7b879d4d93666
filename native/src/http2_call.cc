#include "tablebay/http2_call.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <thread>

#include "tablebay/status.h"

namespace tablebay {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;
using std::chrono::seconds;

// How long nothing is looked at while nothing comes.
constexpr milliseconds kSlice{50};
// A name may have got another address, so that one that does not answer is given up early.
constexpr seconds kConnectMax{5};
// As the gRPC client has it: below 30 s a server answers too_many_pings.
constexpr seconds kSilence{30};
constexpr seconds kPingAnswer{20};
constexpr size_t kIdleMax = 16;
// Of a connection without a call: a server has little to say on it.
constexpr int kIdleReadsMax = 64;
// Of one system call.
constexpr size_t kFramesMax = 64;
constexpr size_t kBatchBytes = 1 << 20;

// Ends a call with a status of this end's.
struct Failed {
  CallStatus status;
};

[[noreturn]] void Fail(uint32_t code, std::string message) { throw Failed{{code, std::move(message)}}; }

std::string SystemError(int error) {
  char text[128];
  // GNU's: it may use the buffer, or not.
  return strerror_r(error, text, sizeof text);
}

struct FreeAddresses {
  void operator()(addrinfo* list) const { freeaddrinfo(list); }
};
using Addresses = std::unique_ptr<addrinfo, FreeAddresses>;

int Look(const std::string& host, uint16_t port, int flags, Addresses* found) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV | flags;
  addrinfo* list = nullptr;
  const int error = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &list);
  found->reset(list);
  return error;
}

}  // namespace

// A socket and what is spoken over it. Of one call at a time; Abort may come from any thread.
class Http2Connection {
 public:
  explicit Http2Connection(const Http2Server::Options& options) : options_(options), http_(options.message_bytes_max) {}
  ~Http2Connection() { Close(); }

  Http2Client& http() { return http_; }

  // Whoever waits on it wakes, and fails with this text.
  void Abort(const char* why) {
    const char* nothing = nullptr;
    why_.compare_exchange_strong(nothing, why);
    const std::lock_guard lock(mutex_);
    if (fd_ >= 0) shutdown(fd_, SHUT_RDWR);
  }

  // Also ends what a stopped thread waits for.
  void Check(Clock::time_point deadline, const Tick* tick) {
    if (const char* const why = why_.load()) Fail(kGrpcCancelled, why);
    if (Clock::now() >= deadline) Fail(kGrpcDeadlineExceeded, "Deadline Exceeded");
    if (tick != nullptr) (*tick)();
  }

  void Open(Clock::time_point deadline, const Tick& tick) {
    const Addresses addresses = Resolve(deadline, tick);
    const Clock::time_point enough = Clock::now() + kConnectMax;
    std::string problem = "no address";
    for (const addrinfo* at = addresses.get(); at != nullptr; at = at->ai_next) {
      const int error = Connect(*at, std::min(deadline, enough), deadline, tick);
      if (error != 0) {
        problem = SystemError(error);
      } else if (options_.tls == nullptr) {
        return;
      } else if (Secure(std::min(deadline, enough), deadline, tick, &problem)) {
        return;
      }
    }
    Fail(kGrpcUnavailable, "failed to connect: " + problem);
  }

  // Takes what came while nobody looked. False when it cannot serve another call.
  bool Fresh() {
    try {
      for (int reads = 0; reads < kIdleReadsMax; ++reads) {
        if (!Receive()) return http_.usable();
      }
      return false;
    } catch (const Failed&) {
      return false;
    } catch (const StatusError&) {
      return false;
    }
  }

  // Whether anything was there. Throws Failed at the end of the stream.
  bool Receive() {
    auto space = http_.Space();
    const size_t empty = space[0].iov_len == 0 ? 1 : 0;
    const size_t count = 2 - empty;
    const ssize_t n = tls_ != nullptr ? tls_->Read(space.data() + empty, count)
                                      : readv(fd_, space.data() + empty, static_cast<int>(count));
    if (n > 0) {
      heard_ = Clock::now();
      pinged_ = false;
      http_.Took(static_cast<size_t>(n));
      return true;
    }
    if (const char* const why = why_.load()) Fail(kGrpcCancelled, why);
    if (n == 0) Fail(kGrpcUnavailable, "the server closed the connection");
    if (errno == EAGAIN || errno == EWOULDBLOCK) return false;
    if (errno == EINTR) return true;
    Fail(kGrpcUnavailable, errno == EPROTO && tls_ != nullptr ? tls_->problem() : SystemError(errno));
  }

  // How much the system took; 0 when it has no room.
  size_t Transmit(iovec* parts, size_t count) {
    msghdr message{};
    message.msg_iov = parts;
    message.msg_iovlen = count;
    const ssize_t n = tls_ != nullptr ? tls_->Write(parts, count) : sendmsg(fd_, &message, MSG_NOSIGNAL);
    if (n >= 0) return static_cast<size_t>(n);
    HeedSendError(errno);
    return 0;
  }

  // Whether the system has all that Transmit took.
  bool Flush() {
    if (tls_ == nullptr || tls_->Flush()) return true;
    HeedSendError(errno);
    return false;
  }

  // Until the socket can be read, or written where that is wanted.
  void Await(bool writable, Clock::time_point deadline, const Tick& tick) {
    bool waited = false;
    while (true) {
      Check(deadline, waited ? &tick : nullptr);
      if (Poll(writable, deadline)) return;
      waited = true;
      KeepAlive();
      // A PING, which is sent by whoever waits here.
      if (!http_.owed().empty()) return;
    }
  }

  // A call begins.
  void Begin() {
    heard_ = Clock::now();
    pinged_ = false;
  }

 private:
  void HeedSendError(int error) {
    if (error == EAGAIN || error == EWOULDBLOCK || error == EINTR) return;
    // What the server said before it ended the connection tells more.
    while (!http_.status() && Receive()) {
    }
    if (!http_.status()) Fail(kGrpcUnavailable, SystemError(error));
  }

  bool Poll(bool writable, Clock::time_point deadline) const {
    const auto left = std::chrono::ceil<milliseconds>(deadline - Clock::now());
    const auto slice = std::clamp(left, milliseconds(0), kSlice);
    pollfd entry{fd_, static_cast<short>(writable ? POLLIN | POLLOUT : POLLIN), 0};
    return poll(&entry, 1, static_cast<int>(slice.count())) > 0;
  }

  void KeepAlive() {
    const Clock::time_point now = Clock::now();
    if (!pinged_ && now - heard_ >= kSilence) {
      http_.Ping();
      pinged_ = true;
      heard_ = now;
    } else if (pinged_ && now - heard_ >= kPingAnswer) {
      Fail(kGrpcUnavailable, "ping timeout");
    }
  }

  Addresses Resolve(Clock::time_point deadline, const Tick& tick) {
    Addresses found;
    if (Look(options_.host, options_.port, AI_NUMERICHOST, &found) == 0) return found;
    // The system's resolver knows no deadline, so that it runs in a thread that may be left behind.
    struct Search {
      std::mutex mutex;
      std::condition_variable over;
      bool done = false;
      int error = 0;
      Addresses found;
    };
    const auto search = std::make_shared<Search>();
    std::thread([search, host = options_.host, port = options_.port] {
      Addresses list;
      const int error = Look(host, port, 0, &list);
      const std::lock_guard lock(search->mutex);
      search->done = true;
      search->error = error;
      search->found = std::move(list);
      search->over.notify_all();
    }).detach();
    std::unique_lock lock(search->mutex);
    while (!search->over.wait_for(lock, kSlice, [&] { return search->done; })) {
      lock.unlock();
      Check(deadline, &tick);
      lock.lock();
    }
    if (search->error != 0)
      Fail(kGrpcUnavailable, std::string("DNS resolution failed: ") + gai_strerror(search->error));
    return std::move(search->found);
  }

  // 0, or the system's error.
  int Connect(const addrinfo& address, Clock::time_point enough, Clock::time_point deadline, const Tick& tick) {
    Close();
    const int fd = socket(address.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return errno;
    {
      const std::lock_guard lock(mutex_);
      fd_ = fd;
    }
    const int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    const int timeout_ms = static_cast<int>(milliseconds(kPingAnswer).count());
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout_ms, sizeof timeout_ms);
    if (connect(fd, address.ai_addr, address.ai_addrlen) == 0) return 0;
    if (errno != EINPROGRESS) return errno;
    pollfd entry{fd, POLLOUT, 0};
    while (poll(&entry, 1, static_cast<int>(kSlice.count())) <= 0) {
      Check(deadline, &tick);
      if (Clock::now() >= enough) return ETIMEDOUT;
    }
    Check(deadline, nullptr);
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
    return error;
  }

  // The handshake. False with the problem where there can be none.
  bool Secure(Clock::time_point enough, Clock::time_point deadline, const Tick& tick, std::string* problem) {
    tls_ = std::make_unique<TlsStream>(options_.tls, fd_, options_.host);
    while (!tls_->Shake()) {
      if (errno != EAGAIN && errno != EWOULDBLOCK) {
        *problem = errno == EPROTO ? tls_->problem() : SystemError(errno);
        return false;
      }
      pollfd entry{fd_, static_cast<short>(tls_->unsent() ? POLLIN | POLLOUT : POLLIN), 0};
      if (poll(&entry, 1, static_cast<int>(kSlice.count())) > 0) {
        Check(deadline, nullptr);
        continue;
      }
      Check(deadline, &tick);
      if (Clock::now() >= enough) {
        *problem = "TLS: the server does not answer";
        return false;
      }
    }
    return true;
  }

  void Close() {
    tls_.reset();
    const std::lock_guard lock(mutex_);
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
  }

  const Http2Server::Options& options_;
  Http2Client http_;
  std::atomic<const char*> why_{nullptr};
  std::mutex mutex_;  // of fd_, while another thread may use it
  int fd_ = -1;
  std::unique_ptr<TlsStream> tls_;  // null: plain
  Clock::time_point heard_{};
  bool pinged_ = false;
};

// -- the connections to a server

std::shared_ptr<Http2Connection> Http2Server::Idle() {
  while (true) {
    std::shared_ptr<Http2Connection> connection;
    {
      const std::lock_guard lock(mutex_);
      if (closed_ || idle_.empty()) return nullptr;
      connection = std::move(idle_.back());
      idle_.pop_back();
      busy_.insert(connection);
    }
    if (connection->Fresh()) return connection;
    GiveBack(connection, false);
  }
}

std::shared_ptr<Http2Connection> Http2Server::New() {
  auto connection = std::make_shared<Http2Connection>(options_);
  const std::lock_guard lock(mutex_);
  if (closed_) return nullptr;
  busy_.insert(connection);
  return connection;
}

void Http2Server::GiveBack(const std::shared_ptr<Http2Connection>& connection, bool clean) {
  const std::lock_guard lock(mutex_);
  // Not among them after Drop.
  if (busy_.erase(connection) > 0 && clean && idle_.size() < kIdleMax) idle_.push_back(connection);
}

void Http2Server::Drop(bool for_good) {
  std::vector<std::shared_ptr<Http2Connection>> idle;
  std::unordered_set<std::shared_ptr<Http2Connection>> busy;
  {
    const std::lock_guard lock(mutex_);
    closed_ = closed_ || for_good;
    idle.swap(idle_);
    busy.swap(busy_);
  }
  for (const auto& connection : busy) connection->Abort("Channel closed!");
}

// -- a call

Http2Call::Http2Call(std::shared_ptr<Http2Server> server, std::string path, std::string_view request, double timeout_s)
    : server_(std::move(server)),
      path_(std::move(path)),
      request_(request),
      // A bound that a time can hold.
      deadline_(Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                   std::chrono::duration<double>(std::clamp(timeout_s, 0.0, 1e8)))),
      prefix_{} {
  const auto size = static_cast<uint32_t>(request.size());
  for (size_t i = 0; i < 4; ++i) prefix_[1 + i] = static_cast<char>(size >> (24 - 8 * i));
}

Http2Call::~Http2Call() { End(false); }

void Http2Call::End(bool clean) {
  std::shared_ptr<Http2Connection> connection;
  {
    const std::lock_guard lock(mutex_);
    connection.swap(connection_);
  }
  if (connection) server_->GiveBack(connection, clean);
}

// Whatever ends the call becomes its status, but what a tick threw.
void Http2Call::Guard(const std::function<void()>& work) {
  try {
    work();
  } catch (const Failed& failed) {
    status_ = failed.status;
    End(false);
  } catch (const StatusError& error) {
    status_ = CallStatus{kGrpcUnavailable, error.what()};
    End(false);
  } catch (...) {
    status_ = CallStatus{kGrpcCancelled, "interrupted"};
    End(false);
    throw;
  }
}

void Http2Call::Send(const Http2Client::Allocate& allocate, const Tick& tick) {
  Guard([&] {
    const Http2Server::Options& options = server_->options();
    if (request_.size() > options.message_bytes_max) {
      Fail(kGrpcResourceExhausted, Format("CLIENT: Sent message larger than max (%zu vs. %llu)", request_.size(),
                                          static_cast<unsigned long long>(options.message_bytes_max)));
    }
    std::shared_ptr<Http2Connection> connection = server_->Idle();
    const bool opened = connection != nullptr;
    if (!opened) connection = server_->New();
    if (!connection) Fail(kGrpcCancelled, "Channel closed!");
    {
      const std::lock_guard lock(mutex_);
      connection_ = connection;
    }
    if (!opened) connection->Open(deadline_, tick);
    connection->Begin();
    const auto left = std::chrono::ceil<milliseconds>(deadline_ - Clock::now()).count();
    connection->http().Begin({options.authority, path_, options.user_agent,
                              static_cast<uint64_t>(std::max<int64_t>(left, 1)), options.tls != nullptr},
                             allocate);
    Drive(true, tick);
  });
}

const CallStatus& Http2Call::Wait(const Tick& tick) {
  if (!status_) {
    Guard([&] {
      Drive(false, tick);
      Http2Client& http = connection_->http();
      status_ = http.status();
      End(http.clean() && !torn_ && http.usable());
    });
  }
  return *status_;
}

void Http2Call::Cancel() {
  const std::lock_guard lock(mutex_);
  if (connection_) connection_->Abort("Locally cancelled by application!");
}

// Sends the request and reads what comes, until there is an answer; or until all has been sent.
void Http2Call::Drive(bool until_sent, const Tick& tick) {
  Http2Connection& connection = *connection_;
  Http2Client& http = connection.http();
  const size_t whole = prefix_.size() + request_.size();
  std::string owed;
  std::array<std::array<char, 9>, kFramesMax> heads;
  std::vector<iovec> parts;
  size_t next = 0;  // of the parts

  // What may be sent now.
  const auto gather = [&] {
    parts.clear();
    next = 0;
    owed.clear();
    owed.swap(http.owed());
    if (!owed.empty()) parts.push_back({owed.data(), owed.size()});
    size_t bytes = 0;
    for (size_t frame = 0; frame < kFramesMax && bytes < kBatchBytes && sent_ < whole; ++frame) {
      const size_t n = std::min({http.DataMax(), whole - sent_, kBatchBytes});
      if (n == 0) break;
      http.AppendDataHead(n, sent_ + n == whole, &heads[frame]);
      parts.push_back({heads[frame].data(), heads[frame].size()});
      size_t from = sent_;
      if (from < prefix_.size()) {
        const size_t some = std::min(n, prefix_.size() - from);
        parts.push_back({prefix_.data() + from, some});
        from += some;
      }
      const size_t rest = sent_ + n - from;
      if (rest > 0) parts.push_back({const_cast<char*>(request_.data()) + (from - prefix_.size()), rest});
      sent_ += n;
      bytes += n;
    }
  };

  while (!http.status()) {
    connection.Check(deadline_, nullptr);
    if (next == parts.size()) gather();
    if (next < parts.size()) {
      size_t n = connection.Transmit(parts.data() + next, parts.size() - next);
      const bool blocked = n == 0;
      while (next < parts.size() && n >= parts[next].iov_len) n -= parts[next++].iov_len;
      if (n > 0) parts[next] = {static_cast<char*>(parts[next].iov_base) + n, parts[next].iov_len - n};
      if (!blocked) continue;
    }
    const bool more = !connection.Flush() || next < parts.size();
    if (!more && until_sent && sent_ == whole) return;
    if (!connection.Receive()) connection.Await(more, deadline_, tick);
  }
  torn_ = torn_ || next < parts.size();
}

}  // namespace tablebay
