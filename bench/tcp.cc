// Option G: the same table behind length-framed TCP, C++ at both ends. The limit that the gRPC path is held against:
// no HTTP/2, no protobuf, no identity, no step window, no retry.
//
// Frame: u32 operation (0 pull, 1 push; plus 2: the same bytes, and no table), u32 keys, then the keys, then for a push
// the gradients; the answer of a pull is the rows, of a push four bytes. Built as a shared library and called by
// bench/tcp_table.py.
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "tablebay/store.h"

namespace {

constexpr uint32_t kPush = 1;
constexpr uint32_t kBare = 2;

struct Frame {
  uint32_t operation;
  uint32_t keys;
};

bool ReadAll(int fd, char* to, size_t bytes) {
  while (bytes > 0) {
    const ssize_t n = recv(fd, to, bytes, MSG_WAITALL);
    if (n <= 0) return false;
    to += n;
    bytes -= static_cast<size_t>(n);
  }
  return true;
}

bool WriteAll(int fd, iovec* parts, int count) {
  while (count > 0) {
    ssize_t n = writev(fd, parts, count);
    if (n <= 0) return false;
    while (count > 0 && static_cast<size_t>(n) >= parts->iov_len) {
      n -= static_cast<ssize_t>(parts->iov_len);
      ++parts;
      --count;
    }
    if (count > 0) {
      parts->iov_base = static_cast<char*>(parts->iov_base) + n;
      parts->iov_len -= static_cast<size_t>(n);
    }
  }
  return true;
}

void Serve(int fd, tablebay::Store* store, tablebay::Table* table) {
  const size_t row_bytes = table->layout().weight_bytes;
  std::vector<char> keys;
  std::vector<char> rows;
  Frame frame;
  while (ReadAll(fd, reinterpret_cast<char*>(&frame), sizeof frame)) {
    keys.resize(frame.keys * sizeof(uint64_t));
    rows.resize(frame.keys * row_bytes);
    if (!ReadAll(fd, keys.data(), keys.size())) break;
    const bool bare = (frame.operation & kBare) != 0;
    if ((frame.operation & kPush) == 0) {
      if (!bare) store->Pull(*table, {keys.data(), keys.size()}, tablebay::kUnique, rows.data());
      iovec answer[1] = {{rows.data(), rows.size()}};
      if (!WriteAll(fd, answer, 1)) break;
    } else {
      if (!ReadAll(fd, rows.data(), rows.size())) break;
      if (!bare) store->Push(*table, {keys.data(), keys.size()}, {rows.data(), rows.size()}, tablebay::kUnique);
      uint32_t done = 1;
      iovec answer[1] = {{&done, sizeof done}};
      if (!WriteAll(fd, answer, 1)) break;
    }
  }
  close(fd);
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// Serves a table of `dim` floats with Adagrad on a free loopback port, each connection in a thread of its own;
// returns the port, 0 when there is none.
uint16_t tcp_serve(uint32_t dim) {
  auto* store = new tablebay::Store(1, {});
  const uint32_t id = store->CreateTable({"bench",
                                          dim,
                                          "float32",
                                          "Adagrad",
                                          {{"learning_rate", 0.05}, {"initial_accumulator", 0.1}, {"epsilon", 1e-8}},
                                          "Normal",
                                          {{"mean", 0.0}, {"stddev", 0.01}},
                                          0,
                                          "Reject"});
  tablebay::Table* table = &store->FindTable(id);
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  if (bind(listener, reinterpret_cast<sockaddr*>(&address), size) != 0 || listen(listener, 16) != 0 ||
      getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    return 0;
  }
  std::thread([=] {
    while (true) {
      const int fd = accept(listener, nullptr, nullptr);
      if (fd < 0) return;
      const int on = 1;
      setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
      std::thread(Serve, fd, store, table).detach();
    }
  }).detach();
  return ntohs(address.sin_port);
}

int tcp_connect(uint16_t port) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) return -1;
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  return fd;
}

// Both return 1 when done, 0 when the connection is gone.
int tcp_pull(int fd, const char* keys, uint32_t count, char* rows, uint64_t row_bytes, int bare) {
  Frame frame{bare ? kBare : 0, count};
  iovec parts[2] = {{&frame, sizeof frame}, {const_cast<char*>(keys), count * sizeof(uint64_t)}};
  return WriteAll(fd, parts, 2) && ReadAll(fd, rows, count * row_bytes) ? 1 : 0;
}

int tcp_push(int fd, const char* keys, uint32_t count, const char* gradients, uint64_t row_bytes, int bare) {
  Frame frame{kPush | (bare ? kBare : 0), count};
  iovec parts[3] = {{&frame, sizeof frame},
                    {const_cast<char*>(keys), count * sizeof(uint64_t)},
                    {const_cast<char*>(gradients), count * row_bytes}};
  uint32_t done = 0;
  return WriteAll(fd, parts, 3) && ReadAll(fd, reinterpret_cast<char*>(&done), sizeof done) ? 1 : 0;
}

}  // extern "C"
#pragma GCC visibility pop
