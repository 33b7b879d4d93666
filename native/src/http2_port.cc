#include "tablebay/http2_port.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "tablebay/http2_host.h"
#include "tablebay/status.h"

namespace tablebay {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr seconds kGreeting{10};    // for a connection's first frame
constexpr seconds kSilence{60};     // then a peer is asked whether it is there
constexpr seconds kPingAnswer{20};  // and this long it has to say so, or to take what is sent
constexpr milliseconds kSlice{50};
constexpr seconds kRounds{1};
constexpr int kReadsMax = 64;  // of one connection, before another is looked at
// Of one system call.
constexpr size_t kBatchBytes = 1 << 20;
// Of answers to PING, SETTINGS and what is no call, which the client does not take.
constexpr size_t kUnsentBytesMax = 256 * 1024;
// Requests' memory that is kept for those that follow.
constexpr size_t kFreeMax = 16;
constexpr size_t kFreeBytesMax = size_t{16} << 20;
// What epoll says of the port's own; connections have numbers from 1.
constexpr uint64_t kListener = 0;
constexpr uint64_t kQueue = UINT64_MAX;

class Memory {
 public:
  Message Take(size_t bytes) {
    Message taken;
    {
      const std::lock_guard lock(mutex_);
      for (Message& one : free_) {
        if (one.capacity < bytes) continue;
        taken = std::move(one);
        one = std::move(free_.back());
        free_.pop_back();
        break;
      }
    }
    if (taken.bytes == nullptr && bytes > 0) {
      taken.bytes = std::make_unique_for_overwrite<char[]>(bytes);
      taken.capacity = bytes;
    }
    taken.size = bytes;
    return taken;
  }

  void GiveBack(Message message) {
    if (message.capacity == 0 || message.capacity > kFreeBytesMax) return;
    const std::lock_guard lock(mutex_);
    if (free_.size() < kFreeMax) free_.push_back(std::move(message));
  }

 private:
  std::mutex mutex_;
  std::vector<Message> free_;
};

}  // namespace

class Http2Port::State : public std::enable_shared_from_this<Http2Port::State> {
 public:
  State(const Options& options, Handler handler)
      : options_(options),
        handler_(std::move(handler)),
        listener_(options.fd),
        epoll_(epoll_create1(EPOLL_CLOEXEC)),
        queue_event_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE)) {
    fcntl(listener_, F_SETFL, fcntl(listener_, F_GETFL) | O_NONBLOCK);
  }
  ~State() {
    for (const int fd : {listener_, epoll_, queue_event_}) {
      if (fd >= 0) close(fd);
    }
  }

  void Start() {
    Watch(EPOLL_CTL_ADD, listener_, kListener, EPOLLIN | EPOLLONESHOT);
    Watch(EPOLL_CTL_ADD, queue_event_, kQueue, EPOLLIN);
    AddThread();
    std::thread([self = shared_from_this()] { self->Keep(); }).detach();
  }

  bool Stop(double grace_s) {
    std::vector<std::shared_ptr<Connection>> all;
    {
      std::unique_lock lock(mutex_);
      if (!stopping_) {
        stopping_ = true;
        epoll_ctl(epoll_, EPOLL_CTL_DEL, listener_, nullptr);
        shutdown(listener_, SHUT_RDWR);
      }
      all = Connections();
    }
    for (const auto& connection : all) {
      {
        const std::lock_guard lock(connection->mutex);
        connection->host.GoAway();
      }
      Flush(*connection);
    }
    bool ended = false;
    {
      std::unique_lock lock(mutex_);
      ended = changed_.wait_for(lock, std::chrono::duration<double>(grace_s), [&] { return calls_ == 0; });
      all = Connections();
    }
    for (const auto& connection : all) End(*connection);
    std::unique_lock lock(mutex_);
    stopped_ = true;
    Wake(threads_);
    changed_.notify_all();
    if (changed_.wait_for(lock, seconds(1), [&] { return threads_ == 0; }) && listener_ >= 0) {
      close(std::exchange(listener_, -1));
    }
    return ended;
  }

 private:
  struct Connection {
    Connection(int socket, std::unique_ptr<TlsStream> its_tls, uint64_t its_number, const Http2Host::Limits& limits,
               Memory& memory)
        : fd(socket),
          tls(std::move(its_tls)),
          number(its_number),
          host(
              limits, [&memory](size_t bytes) { return memory.Take(bytes); },
              [&memory](Message message) { memory.GiveBack(std::move(message)); }) {}
    ~Connection() { close(fd); }
    // As the system's calls, which they are where there is no TLS.
    ssize_t Read(iovec* parts, size_t count) const {
      return tls != nullptr ? tls->Read(parts, count) : readv(fd, parts, static_cast<int>(count));
    }
    ssize_t Write(iovec* parts, size_t count) const {
      if (tls != nullptr) return tls->Write(parts, count);
      msghdr message{};
      message.msg_iov = parts;
      message.msg_iovlen = count;
      return sendmsg(fd, &message, MSG_NOSIGNAL);
    }
    // Whether the system has all that Write took.
    bool Flush() const { return tls == nullptr || tls->Flush(); }
    const int fd;
    const std::unique_ptr<TlsStream> tls;  // null: plain
    const uint64_t number;
    // Of frames: who sends has it from a frame's first byte to its last. Before `mutex`.
    std::mutex sending;
    std::mutex mutex;  // of what follows
    std::condition_variable changed;
    Http2Host host;
    std::string unsent;  // of frames that were owed: their first bytes may be on their way
    bool ended = false;
    Clock::time_point heard = Clock::now();
    bool pinged = false;
  };
  // One of the calls that may be under way, from when its request is whole until its answer is sent.
  class Place {
   public:
    explicit Place(State* state) : state_(state) {
      const std::lock_guard lock(state->mutex_);
      if (state->calls_ < state->options_.calls_max) {
        ++state->calls_;
      } else {
        state_ = nullptr;
      }
    }
    ~Place() {
      if (state_ == nullptr) return;
      const std::lock_guard lock(state_->mutex_);
      --state_->calls_;
      if (state_->stopping_) state_->changed_.notify_all();
    }
    Place(Place&& other) noexcept : state_(std::exchange(other.state_, nullptr)) {}
    Place& operator=(Place&&) = delete;
    bool taken() const { return state_ != nullptr; }

   private:
    State* state_;
  };
  struct Task {
    std::shared_ptr<Connection> connection;
    Http2Host::Call call;
    Clock::time_point deadline;
    Place place;
  };

  std::vector<std::shared_ptr<Connection>> Connections() const {
    std::vector<std::shared_ptr<Connection>> all;
    for (const auto& [number, connection] : connections_) all.push_back(connection);
    return all;
  }

  void Watch(int operation, int fd, uint64_t number, uint32_t events) {
    epoll_event event{};
    event.events = events;
    event.data.u64 = number;
    epoll_ctl(epoll_, operation, fd, &event);
  }

  void Wake(uint64_t threads) {
    if (threads > 0) [[maybe_unused]]
      const ssize_t written = write(queue_event_, &threads, sizeof threads);
  }

  void AddThread() {
    {
      const std::lock_guard lock(mutex_);
      if (stopped_) return;
      ++threads_;
    }
    try {
      std::thread([self = shared_from_this()] { self->Work(); }).detach();
    } catch (const std::system_error&) {
      const std::lock_guard lock(mutex_);
      --threads_;
    }
  }

  // Before a thread does what may take long: another is there to read.
  void LeaveSpare() {
    {
      const std::lock_guard lock(mutex_);
      if (waiting_ > 0 || threads_ > options_.calls_max) return;
    }
    AddThread();
  }

  void Work() {
    while (true) {
      epoll_event event{};
      {
        const std::lock_guard lock(mutex_);
        if (stopped_) break;
        ++waiting_;
      }
      const int n = epoll_wait(epoll_, &event, 1, -1);
      {
        const std::lock_guard lock(mutex_);
        --waiting_;
        if (stopped_) break;
      }
      if (n <= 0) continue;
      if (event.data.u64 == kListener) {
        Accept();
      } else if (event.data.u64 == kQueue) {
        TakeQueued();
      } else {
        std::shared_ptr<Connection> connection;
        {
          const std::lock_guard lock(mutex_);
          const auto found = connections_.find(event.data.u64);
          if (found != connections_.end()) connection = found->second;
        }
        if (connection != nullptr) Serve(connection);
      }
    }
    const std::lock_guard lock(mutex_);
    --threads_;
    changed_.notify_all();
  }

  void Accept() {
    while (true) {
      const int fd = accept4(listener_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
      if (fd < 0) {
        if (errno == EINTR || errno == ECONNABORTED) continue;
        // No file may be left for it, until another connection ends.
        if (errno != EAGAIN && errno != EWOULDBLOCK) std::this_thread::sleep_for(kSlice);
        break;
      }
      const int on = 1;
      setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
      const int timeout_ms = static_cast<int>(milliseconds(kPingAnswer).count());
      setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout_ms, sizeof timeout_ms);
      std::shared_ptr<Connection> connection;
      try {
        std::unique_ptr<TlsStream> tls;
        if (options_.tls) tls = std::make_unique<TlsStream>(options_.tls(), fd, "");
        const std::lock_guard lock(mutex_);
        if (stopping_ || connections_.size() >= options_.connections_max) {
          close(fd);
          continue;
        }
        const uint64_t number = ++last_number_;
        const Http2Host::Limits limits{options_.message_bytes_max, options_.streams_max, options_.metadata_bytes_max};
        connection = std::make_shared<Connection>(fd, std::move(tls), number, limits, memory_);
        connections_.emplace(number, connection);
      } catch (const std::exception&) {
        if (connection == nullptr) close(fd);  // else it is closed with it
        continue;
      }
      // What it begins with is ours as well.
      Flush(*connection);
      Watch(EPOLL_CTL_ADD, fd, connection->number, EPOLLIN | EPOLLONESHOT);
    }
    const std::lock_guard lock(mutex_);
    if (!stopping_) Watch(EPOLL_CTL_MOD, listener_, kListener, EPOLLIN | EPOLLONESHOT);
  }

  void TakeQueued() {
    uint64_t one;
    if (read(queue_event_, &one, sizeof one) != sizeof one) return;
    std::optional<Task> task;
    {
      const std::lock_guard lock(mutex_);
      if (queue_.empty()) return;
      task.emplace(std::move(queue_.front()));
      queue_.pop_front();
    }
    LeaveSpare();
    Do(std::move(*task));
  }

  // Reads until a call is whole, or nothing is left.
  void Serve(const std::shared_ptr<Connection>& connection) {
    std::vector<Task> tasks;
    try {
      // Others want to be read as well.
      for (int reads = 0; tasks.empty() && reads < kReadsMax; ++reads) {
        std::array<iovec, 2> space;
        {
          const std::lock_guard lock(connection->mutex);
          if (connection->ended) return;
          space = connection->host.Space();
        }
        const size_t empty = space[0].iov_len == 0 ? 1 : 0;
        const ssize_t n = connection->Read(space.data() + empty, 2 - empty);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
        if (n <= 0) return End(*connection);
        const std::lock_guard lock(connection->mutex);
        connection->heard = Clock::now();
        connection->pinged = false;
        connection->host.Took(static_cast<size_t>(n));
        while (std::optional<Http2Host::Call> call = connection->host.Next()) {
          const uint64_t longest = 1'000'000ull * 86'400 * 365;
          const auto deadline = call->timeout_us > longest
                                    ? Clock::time_point::max()
                                    : connection->heard + std::chrono::microseconds(call->timeout_us);
          tasks.push_back({connection, std::move(*call), deadline, Place(this)});
        }
        // Room in a window, or a stream that is no more.
        connection->changed.notify_all();
      }
      Flush(*connection);
    } catch (const std::exception&) {
      return End(*connection);
    }
    if (!tasks.empty()) LeaveSpare();
    Rearm(*connection);
    if (tasks.empty()) return;
    if (tasks.size() > 1) {
      const std::lock_guard lock(mutex_);
      for (size_t i = 1; i < tasks.size(); ++i) queue_.push_back(std::move(tasks[i]));
      Wake(tasks.size() - 1);
    }
    Do(std::move(tasks[0]));
  }

  void Rearm(Connection& connection) {
    bool writes;
    {
      const std::lock_guard lock(connection.mutex);
      if (connection.ended) return;
      writes = !connection.unsent.empty();
    }
    if (const TlsStream* const tls = connection.tls.get()) {
      // Frames wait for the handshake; and what came already the socket does not tell of again, so that the room for
      // writing has to.
      writes = (writes && tls->ready()) || tls->unsent() || tls->unread();
    }
    Watch(EPOLL_CTL_MOD, connection.fd, connection.number, EPOLLIN | EPOLLONESHOT | (writes ? uint32_t{EPOLLOUT} : 0));
  }

  void Do(Task task) {
    Connection& connection = *task.connection;
    try {
      Answer answer;
      if (!task.place.taken()) {
        answer.status = {kGrpcResourceExhausted, "Concurrent RPC limit exceeded!"};
      } else if (Clock::now() >= task.deadline) {
        answer.status = {kGrpcDeadlineExceeded, "Deadline Exceeded"};
      } else {
        static const std::string nobody;
        answer = handler_(task.call.path, task.call.message.view(), connection.tls ? connection.tls->peer() : nobody);
      }
      memory_.GiveBack(std::move(task.call.message));
      if (answer.status.code == kGrpcOk && answer.message.size() > options_.message_bytes_max) {
        answer.status = {kGrpcResourceExhausted,
                         Format("SERVER: Sent message larger than max (%zu vs. %llu)", answer.message.size(),
                                static_cast<unsigned long long>(options_.message_bytes_max))};
      }
      if (answer.status.code == kGrpcOk) {
        Send(connection, task.call.stream, answer);
      } else {
        Refuse(connection, task.call.stream, answer.status);
      }
    } catch (const std::exception&) {
      End(connection);
    }
  }

  // Waits for nobody.
  void Refuse(Connection& connection, uint32_t stream, const CallStatus& status) {
    {
      const std::lock_guard lock(connection.mutex);
      if (!connection.host.open(stream)) return;
      connection.host.owed() += Http2Host::Refusal(stream, status);
      connection.host.Close(stream);
    }
    Flush(connection);
  }

  void Send(Connection& connection, uint32_t stream, const Answer& answer) {
    const std::string first = Http2Host::AnswerHead(stream);
    const std::string last = Http2Host::AnswerTail(stream);
    std::array<char, 5> prefix{};
    for (size_t i = 0; i < 4; ++i) prefix[1 + i] = static_cast<char>(answer.message.size() >> (24 - 8 * i));
    const size_t whole = prefix.size() + answer.message.size();
    std::vector<std::array<char, 9>> heads;
    std::vector<iovec> parts;
    const auto put = [&](std::string_view bytes) {
      if (!bytes.empty()) parts.push_back({const_cast<char*>(bytes.data()), bytes.size()});
    };
    bool begun = false;
    Clock::time_point progress = Clock::now();
    for (size_t sent = 0; sent < whole;) {
      std::unique_lock sending(connection.sending);
      std::unique_lock lock(connection.mutex);
      if (connection.ended || !connection.host.open(stream)) return;
      if (begun && connection.host.DataMax(stream) == 0) {
        sending.unlock();
        if (Clock::now() - progress > kPingAnswer) {
          lock.unlock();
          return End(connection);
        }
        connection.changed.wait_for(lock, kSlice);
        continue;
      }
      parts.clear();
      heads.clear();
      std::string owed = std::exchange(connection.unsent, {}) + std::exchange(connection.host.owed(), {});
      put(owed);
      if (!begun) put(first);
      begun = true;
      // Each frame is as large as the client takes, but for the batch.
      heads.reserve(kBatchBytes / 16384 + 2);
      for (size_t bytes = 0; bytes < kBatchBytes && sent < whole && heads.size() < heads.capacity();) {
        const size_t n = std::min({connection.host.DataMax(stream), whole - sent, kBatchBytes});
        if (n == 0) break;
        heads.push_back(connection.host.DataHead(stream, n));
        put({heads.back().data(), heads.back().size()});
        size_t from = sent;
        if (from < prefix.size()) {
          const size_t some = std::min(n, prefix.size() - from);
          put({prefix.data() + from, some});
          from += some;
        }
        put(answer.message.substr(from - prefix.size(), sent + n - from));
        sent += n;
        bytes += n;
      }
      if (sent == whole) {
        put(last);
        // Its end is on its way, so that the client may have as many more.
        connection.host.Close(stream);
      }
      lock.unlock();
      if (!Write(connection, &parts)) return End(connection);
      progress = Clock::now();
      // Who takes an answer is there.
      lock.lock();
      connection.heard = progress;
      connection.pinged = false;
    }
    Flush(connection);
  }

  // All of it, unless the client takes nothing for too long.
  bool Write(Connection& connection, std::vector<iovec>* parts) {
    Clock::time_point progress = Clock::now();
    for (size_t next = 0; next < parts->size() || !connection.Flush();) {
      const ssize_t n = next < parts->size() ? connection.Write(parts->data() + next, parts->size() - next) : -1;
      if (n < 0 && errno == EINTR) continue;
      if (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK) return false;
      if (n < 0) {
        if (Clock::now() - progress > kPingAnswer) return false;
        pollfd entry{connection.fd, POLLOUT, 0};
        poll(&entry, 1, static_cast<int>(kSlice.count()));
        continue;
      }
      progress = Clock::now();
      size_t left = static_cast<size_t>(n);
      while (next < parts->size() && left >= (*parts)[next].iov_len) left -= (*parts)[next++].iov_len;
      if (left > 0) {
        iovec& part = (*parts)[next];
        part = {static_cast<char*>(part.iov_base) + left, part.iov_len - left};
      }
    }
    return true;
  }

  // What is owed, as far as the system takes it. Who sends at the moment does it otherwise, and comes here after.
  void Flush(Connection& connection) {
    while (true) {
      std::unique_lock sending(connection.sending, std::try_to_lock);
      if (!sending.owns_lock()) return;
      std::unique_lock lock(connection.mutex);
      connection.unsent += std::exchange(connection.host.owed(), {});
      if (connection.ended) return;
      if (connection.unsent.empty()) {
        connection.Flush();
        return;
      }
      iovec part{connection.unsent.data(), connection.unsent.size()};
      const ssize_t n = connection.Write(&part, 1);
      // An error is met by who reads.
      if (n > 0) connection.unsent.erase(0, static_cast<size_t>(n));
      if (connection.unsent.empty()) continue;
      // It asks, and takes no answers.
      const bool too_much = connection.unsent.size() > kUnsentBytesMax;
      lock.unlock();
      if (too_much) End(connection);
      return;
    }
  }

  void End(Connection& connection) {
    {
      const std::lock_guard lock(connection.mutex);
      if (connection.ended) return;
      connection.ended = true;
      shutdown(connection.fd, SHUT_RDWR);
    }
    connection.changed.notify_all();
    epoll_ctl(epoll_, EPOLL_CTL_DEL, connection.fd, nullptr);
    const std::lock_guard lock(mutex_);
    connections_.erase(connection.number);
  }

  // Ends connections on which nobody is any more.
  void Keep() {
    std::unique_lock lock(mutex_);
    while (!changed_.wait_for(lock, kRounds, [&] { return stopped_; })) {
      const auto all = Connections();
      lock.unlock();
      for (const auto& connection : all) {
        bool gone = false;
        {
          const std::lock_guard its(connection->mutex);
          const auto silence = Clock::now() - connection->heard;
          if (!connection->host.greeted()) {
            gone = silence > kGreeting;
          } else if (connection->pinged) {
            gone = silence > kSilence + kPingAnswer;
          } else if (silence > kSilence) {
            connection->host.Ping();
            connection->pinged = true;
          }
        }
        if (gone) {
          End(*connection);
        } else {
          Flush(*connection);
        }
      }
      lock.lock();
    }
  }

  const Options options_;
  const Handler handler_;
  int listener_;
  const int epoll_;
  const int queue_event_;
  Memory memory_;
  std::mutex mutex_;  // of what follows; taken behind a connection's
  std::condition_variable changed_;
  std::unordered_map<uint64_t, std::shared_ptr<Connection>> connections_;
  std::deque<Task> queue_;
  uint64_t last_number_ = 0;
  uint32_t threads_ = 0;
  uint32_t waiting_ = 0;
  uint32_t calls_ = 0;
  bool stopping_ = false;
  bool stopped_ = false;
};

Http2Port::Http2Port(const Options& options, Handler handler)
    : state_(std::make_shared<State>(options, std::move(handler))) {}
Http2Port::~Http2Port() { state_->Stop(0); }
void Http2Port::Start() { state_->Start(); }
bool Http2Port::Stop(double grace_s) { return state_->Stop(grace_s); }

}  // namespace tablebay
