// TLS 1.2 and later over a socket that does not block, by OpenSSL 3 of the system, which is looked for when it is
// first wanted: a security fix of the system's is one here too (docs/decisions/0018-native-tls.md).
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <cstddef>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

struct ssl_ctx_st;
struct ssl_st;

namespace tablebay {

// Why there can be no TLS here; empty where there can.
const std::string& TlsMissing();

// A key, its certificate, and whom it trusts: what one end of connections shows and asks for. Safe in threads.
class TlsContext {
 public:
  enum class End { kServer, kClient };
  // PEM texts: the certificate with its chain, the authorities that sign the other end's, which must show one.
  struct Credentials {
    std::string_view key;
    std::string_view certificate;
    std::string_view authorities;
  };
  // Throws StatusError: BadRequest for what is no key, certificate or authority; Unimplemented where TlsMissing.
  TlsContext(End end, const Credentials& credentials);
  ~TlsContext();
  TlsContext(const TlsContext&) = delete;
  TlsContext& operator=(const TlsContext&) = delete;

 private:
  friend class TlsStream;
  const End end_;
  ssl_ctx_st* context_;
};

// One connection. Safe in threads: one may read while another writes.
class TlsStream {
 public:
  // name: of the server, which its certificate must be for: a host name or an address. fd stays the caller's.
  TlsStream(std::shared_ptr<const TlsContext> context, int fd, const std::string& name);
  ~TlsStream();
  TlsStream(const TlsStream&) = delete;
  TlsStream& operator=(const TlsStream&) = delete;

  // As readv and sendmsg: -1 and errno EAGAIN where nothing can be done now, also as long as the handshake is under
  // way, which Read goes on with; EPROTO where `problem` says more. What is taken to be written may not be sent yet.
  ssize_t Read(const iovec* parts, size_t count);
  ssize_t Write(const iovec* parts, size_t count);
  // Sends what is left of what was written; whether nothing is. False with errno, as above.
  bool Flush();
  // Goes on with the handshake; whether it is over. False with errno, as above.
  bool Shake();

  // Whether the handshake is over.
  bool ready() const;
  // Whether bytes came that Read has not given yet: the socket tells of them no more.
  bool unread() const;
  bool unsent() const;
  std::string problem() const;
  // The other end's certificate, PEM, once the handshake is over.
  const std::string& peer() const { return peer_; }

 private:
  struct Pipe;
  bool ShakeLocked();
  ssize_t ReadRecords(const iovec* parts, size_t count);
  bool Send();
  int Fail(int result);

  const std::shared_ptr<const TlsContext> context_;
  const int fd_;
  mutable std::mutex mutex_;  // of what follows
  ssl_st* ssl_;
  bool over_ = false;  // the handshake
  // came_, going_ and record_ take pages of memory only as far as they were ever filled: most connections are idle.
  std::unique_ptr<char[]> came_;
  size_t came_begin_ = 0;
  size_t came_end_ = 0;
  std::vector<char> going_;
  size_t gone_ = 0;
  std::vector<char> record_;
  std::string problem_;
  std::string peer_;
};

}  // namespace tablebay
