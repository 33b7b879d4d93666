#include "tablebay/tls.h"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "tablebay/status.h"

// OpenSSL's own names: this file is built without its headers, which a machine that runs this may not have.
struct bio_method_st;
struct bio_st;
struct evp_pkey_st;
struct ssl_method_st;
struct x509_st;
struct x509_store_ctx_st;
struct x509_store_st;
struct X509_VERIFY_PARAM_st;

namespace tablebay {
namespace {

using AlpnSelect = int (*)(ssl_st*, const unsigned char**, unsigned char*, const unsigned char*, unsigned, void*);
using PasswordOf = int (*)(char*, int, int, void*);
using VerifyPeer = int (*)(int, x509_store_ctx_st*);

// What is used of libssl and libcrypto, as OpenSSL 3 declares it.
#define TABLEBAY_OPENSSL(F)                                                             \
  F(const ssl_method_st*, TLS_method, (void))                                           \
  F(ssl_ctx_st*, SSL_CTX_new, (const ssl_method_st*))                                   \
  F(void, SSL_CTX_free, (ssl_ctx_st*))                                                  \
  F(long, SSL_CTX_ctrl, (ssl_ctx_st*, int, long, void*))                                \
  F(uint64_t, SSL_CTX_set_options, (ssl_ctx_st*, uint64_t))                             \
  F(int, SSL_CTX_set_ciphersuites, (ssl_ctx_st*, const char*))                          \
  F(int, SSL_CTX_set_cipher_list, (ssl_ctx_st*, const char*))                           \
  F(int, SSL_CTX_set_num_tickets, (ssl_ctx_st*, size_t))                                \
  F(void, SSL_CTX_set_verify, (ssl_ctx_st*, int, VerifyPeer))                           \
  F(int, SSL_CTX_use_certificate, (ssl_ctx_st*, x509_st*))                              \
  F(int, SSL_CTX_use_PrivateKey, (ssl_ctx_st*, evp_pkey_st*))                           \
  F(int, SSL_CTX_check_private_key, (const ssl_ctx_st*))                                \
  F(x509_store_st*, SSL_CTX_get_cert_store, (const ssl_ctx_st*))                        \
  F(void, SSL_CTX_set_alpn_select_cb, (ssl_ctx_st*, AlpnSelect, void*))                 \
  F(ssl_st*, SSL_new, (ssl_ctx_st*))                                                    \
  F(void, SSL_free, (ssl_st*))                                                          \
  F(long, SSL_ctrl, (ssl_st*, int, long, void*))                                        \
  F(void, SSL_set_bio, (ssl_st*, bio_st*, bio_st*))                                     \
  F(void, SSL_set_accept_state, (ssl_st*))                                              \
  F(void, SSL_set_connect_state, (ssl_st*))                                             \
  F(int, SSL_set_alpn_protos, (ssl_st*, const unsigned char*, unsigned))                \
  F(int, SSL_set1_host, (ssl_st*, const char*))                                         \
  F(X509_VERIFY_PARAM_st*, SSL_get0_param, (ssl_st*))                                   \
  F(void, SSL_get0_alpn_selected, (const ssl_st*, const unsigned char**, unsigned*))    \
  F(int, SSL_do_handshake, (ssl_st*))                                                   \
  F(int, SSL_read, (ssl_st*, void*, int))                                               \
  F(int, SSL_write, (ssl_st*, const void*, int))                                        \
  F(int, SSL_pending, (const ssl_st*))                                                  \
  F(int, SSL_get_error, (const ssl_st*, int))                                           \
  F(long, SSL_get_verify_result, (const ssl_st*))                                       \
  F(x509_st*, SSL_get1_peer_certificate, (const ssl_st*))                               \
  F(int, X509_VERIFY_PARAM_set1_ip_asc, (X509_VERIFY_PARAM_st*, const char*))           \
  F(int, X509_STORE_add_cert, (x509_store_st*, x509_st*))                               \
  F(int, X509_STORE_set_flags, (x509_store_st*, unsigned long))                         \
  F(const char*, X509_verify_cert_error_string, (long))                                 \
  F(void, X509_free, (x509_st*))                                                        \
  F(void, EVP_PKEY_free, (evp_pkey_st*))                                                \
  F(x509_st*, PEM_read_bio_X509, (bio_st*, x509_st**, PasswordOf, void*))               \
  F(int, PEM_write_bio_X509, (bio_st*, const x509_st*))                                 \
  F(evp_pkey_st*, PEM_read_bio_PrivateKey, (bio_st*, evp_pkey_st**, PasswordOf, void*)) \
  F(bio_st*, BIO_new, (const bio_method_st*))                                           \
  F(int, BIO_free, (bio_st*))                                                           \
  F(bio_st*, BIO_new_mem_buf, (const void*, int))                                       \
  F(const bio_method_st*, BIO_s_mem, (void))                                            \
  F(int, BIO_read, (bio_st*, void*, int))                                               \
  F(bio_method_st*, BIO_meth_new, (int, const char*))                                   \
  F(int, BIO_meth_set_write, (bio_method_st*, int (*)(bio_st*, const char*, int)))      \
  F(int, BIO_meth_set_read, (bio_method_st*, int (*)(bio_st*, char*, int)))             \
  F(int, BIO_meth_set_ctrl, (bio_method_st*, long (*)(bio_st*, int, long, void*)))      \
  F(void, BIO_set_data, (bio_st*, void*))                                               \
  F(void*, BIO_get_data, (bio_st*))                                                     \
  F(void, BIO_set_init, (bio_st*, int))                                                 \
  F(void, BIO_set_flags, (bio_st*, int))                                                \
  F(void, BIO_clear_flags, (bio_st*, int))                                              \
  F(unsigned long, ERR_get_error, (void))                                               \
  F(void, ERR_clear_error, (void))                                                      \
  F(const char*, ERR_reason_error_string, (unsigned long))

struct OpenSsl {
#define TABLEBAY_DECLARE(result, name, arguments) result(*name) arguments = nullptr;
  TABLEBAY_OPENSSL(TABLEBAY_DECLARE)
#undef TABLEBAY_DECLARE
  std::string missing;

  OpenSsl() {
    const char* path = std::getenv("TABLEBAY_LIBSSL");
    if (path == nullptr || *path == '\0') path = "libssl.so.3";
    void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      missing = std::string("no OpenSSL 3 here: ") + dlerror();
      return;
    }
    // Those of libcrypto are found through it.
#define TABLEBAY_FIND(result, name, arguments)                    \
  name = reinterpret_cast<decltype(name)>(dlsym(library, #name)); \
  if (name == nullptr) missing = std::string(path) + " has no " + #name;
    TABLEBAY_OPENSSL(TABLEBAY_FIND)
#undef TABLEBAY_FIND
  }
};

// Never unloaded: it has handlers of its own for the end of the process.
const OpenSsl& Ssl() {
  static const OpenSsl* const found = new OpenSsl;
  return *found;
}

// As OpenSSL 3 numbers them.
constexpr int kSetMinimum = 123, kAddChain = 89, kSetHostName = 55, kSetSessionCache = 44;
constexpr int kBioFlush = 11, kBioType = 0x0400 | 100, kBioShouldRetry = 8, kBioRead = 1, kBioAny = 15;
constexpr long kTls12 = 0x0303;
constexpr uint64_t kNoTickets = 1u << 14, kNoCompression = 1u << 17, kNoRenegotiation = 1u << 30;
constexpr int kVerifyPeer = 1, kFailWithoutCertificate = 2;
constexpr unsigned long kPartialChain = 0x80000;
constexpr int kErrorWantRead = 2, kErrorWantWrite = 3, kErrorZeroReturn = 6;
constexpr int kAlpnOk = 0, kAlpnFatal = 2;

constexpr unsigned char kH2[] = {2, 'h', '2'};
constexpr size_t kRecordBytes = 16 * 1024;
// Of one system call, so that what is encrypted is still in a cache when it is sent.
constexpr size_t kBatchBytes = 64 * 1024;
// Of one Read, during which nobody else can write.
constexpr size_t kReadBytesMax = 512 * 1024;

struct FreeBio {
  void operator()(bio_st* bio) const { Ssl().BIO_free(bio); }
};
struct FreeCertificate {
  void operator()(x509_st* certificate) const { Ssl().X509_free(certificate); }
};
struct FreeKey {
  void operator()(evp_pkey_st* key) const { Ssl().EVP_PKEY_free(key); }
};
using Bio = std::unique_ptr<bio_st, FreeBio>;
using Certificate = std::unique_ptr<x509_st, FreeCertificate>;

Bio TextOf(std::string_view pem) {
  return Bio(Ssl().BIO_new_mem_buf(pem.data(), static_cast<int>(std::min<size_t>(pem.size(), INT_MAX))));
}

// A key that wants a password is none that can be used.
int NoPassword(char*, int, int, void*) { return -1; }

std::vector<Certificate> CertificatesOf(std::string_view pem) {
  const Bio text = TextOf(pem);
  std::vector<Certificate> found;
  while (x509_st* const one = Ssl().PEM_read_bio_X509(text.get(), nullptr, NoPassword, nullptr)) {
    found.emplace_back(one);
  }
  Ssl().ERR_clear_error();
  return found;
}

// HTTP/2 and nothing else.
int SelectH2(ssl_st*, const unsigned char** chosen, unsigned char* bytes, const unsigned char* offered, unsigned size,
             void*) {
  for (unsigned at = 0; at < size && at + 1 + offered[at] <= size; at += 1u + offered[at]) {
    if (offered[at] != kH2[0] || std::memcmp(offered + at + 1, kH2 + 1, kH2[0]) != 0) continue;
    *chosen = offered + at + 1;
    *bytes = offered[at];
    return kAlpnOk;
  }
  return kAlpnFatal;
}

std::string Reason() {
  const unsigned long error = Ssl().ERR_get_error();
  Ssl().ERR_clear_error();
  const char* const reason = error == 0 ? nullptr : Ssl().ERR_reason_error_string(error);
  return reason == nullptr ? "the other end ended it" : reason;
}

[[noreturn]] void Unusable(const std::string& what) {
  Ssl().ERR_clear_error();
  throw StatusError("BadRequest", what);
}

bool IsAddress(const std::string& name) {
  char parsed[sizeof(in6_addr)];
  return inet_pton(AF_INET, name.c_str(), parsed) == 1 || inet_pton(AF_INET6, name.c_str(), parsed) == 1;
}

}  // namespace

const std::string& TlsMissing() { return Ssl().missing; }

TlsContext::TlsContext(End end, const Credentials& credentials) : end_(end), context_(nullptr) {
  const OpenSsl& ssl = Ssl();
  if (!ssl.missing.empty()) throw StatusError("Unimplemented", "TLS by the native core: " + ssl.missing);
  const std::vector<Certificate> chain = CertificatesOf(credentials.certificate);
  const std::vector<Certificate> authorities = CertificatesOf(credentials.authorities);
  const Bio text = TextOf(credentials.key);
  const std::unique_ptr<evp_pkey_st, FreeKey> key(
      ssl.PEM_read_bio_PrivateKey(text.get(), nullptr, NoPassword, nullptr));
  if (chain.empty()) Unusable("the certificate is no certificate in PEM");
  if (key == nullptr) Unusable("the key is no private key in PEM without a password");
  if (authorities.empty()) Unusable("the authorities are no certificates in PEM");

  std::unique_ptr<ssl_ctx_st, void (*)(ssl_ctx_st*)> context(ssl.SSL_CTX_new(ssl.TLS_method()), ssl.SSL_CTX_free);
  if (context == nullptr) throw std::bad_alloc();
  ssl.SSL_CTX_ctrl(context.get(), kSetMinimum, kTls12, nullptr);
  ssl.SSL_CTX_ctrl(context.get(), kSetSessionCache, 0, nullptr);
  ssl.SSL_CTX_set_num_tickets(context.get(), 0);
  ssl.SSL_CTX_set_options(context.get(), kNoTickets | kNoCompression | kNoRenegotiation);
  // What HTTP/2 allows of TLS 1.2, with AES first: processors have instructions for it.
  ssl.SSL_CTX_set_ciphersuites(context.get(),
                               "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256");
  ssl.SSL_CTX_set_cipher_list(context.get(), "ECDHE+AESGCM:ECDHE+CHACHA20");
  ssl.SSL_CTX_set_verify(context.get(), kVerifyPeer | kFailWithoutCertificate, nullptr);
  if (end == End::kServer) ssl.SSL_CTX_set_alpn_select_cb(context.get(), SelectH2, nullptr);
  if (ssl.SSL_CTX_use_certificate(context.get(), chain[0].get()) != 1) Unusable("the certificate cannot be used");
  for (size_t i = 1; i < chain.size(); ++i) {
    // It takes a reference of its own.
    ssl.SSL_CTX_ctrl(context.get(), kAddChain, 1, chain[i].get());
  }
  if (ssl.SSL_CTX_use_PrivateKey(context.get(), key.get()) != 1 || ssl.SSL_CTX_check_private_key(context.get()) != 1) {
    Unusable("the key is not that of the certificate");
  }
  x509_store_st* const store = ssl.SSL_CTX_get_cert_store(context.get());
  // Whoever is among the authorities is trusted, whether another authority signed its certificate or not.
  ssl.X509_STORE_set_flags(store, kPartialChain);
  for (const Certificate& authority : authorities) ssl.X509_STORE_add_cert(store, authority.get());
  ssl.ERR_clear_error();
  context_ = context.release();
}

TlsContext::~TlsContext() { Ssl().SSL_CTX_free(context_); }

// Between OpenSSL and the socket: what came and what is going, so that a system call moves many records.
struct TlsStream::Pipe {
  static int Read(bio_st* bio, char* to, int size) {
    auto& stream = *static_cast<TlsStream*>(Ssl().BIO_get_data(bio));
    Ssl().BIO_clear_flags(bio, kBioAny);
    if (stream.came_begin_ == stream.came_end_) {
      const ssize_t n = recv(stream.fd_, stream.came_.get(), kBatchBytes, 0);
      if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) {
        Ssl().BIO_set_flags(bio, kBioRead | kBioShouldRetry);
        return -1;
      }
      if (n <= 0) return static_cast<int>(n);
      stream.came_begin_ = 0;
      stream.came_end_ = static_cast<size_t>(n);
    }
    const size_t n = std::min(static_cast<size_t>(size), stream.came_end_ - stream.came_begin_);
    std::memcpy(to, stream.came_.get() + stream.came_begin_, n);
    stream.came_begin_ += n;
    return static_cast<int>(n);
  }
  static int Write(bio_st* bio, const char* from, int size) {
    auto& stream = *static_cast<TlsStream*>(Ssl().BIO_get_data(bio));
    Ssl().BIO_clear_flags(bio, kBioAny);
    stream.going_.insert(stream.going_.end(), from, from + size);
    return size;
  }
  static long Control(bio_st*, int command, long, void*) { return command == kBioFlush ? 1 : 0; }

  static const bio_method_st* Method() {
    static const bio_method_st* const method = [] {
      bio_method_st* const made = Ssl().BIO_meth_new(kBioType, "tablebay");
      Ssl().BIO_meth_set_read(made, Read);
      Ssl().BIO_meth_set_write(made, Write);
      Ssl().BIO_meth_set_ctrl(made, Control);
      return made;
    }();
    return method;
  }
};

TlsStream::TlsStream(std::shared_ptr<const TlsContext> context, int fd, const std::string& name)
    : context_(std::move(context)),
      fd_(fd),
      ssl_(Ssl().SSL_new(context_->context_)),
      came_(std::make_unique_for_overwrite<char[]>(kBatchBytes)) {
  const OpenSsl& ssl = Ssl();
  bio_st* const pipe = ssl_ == nullptr ? nullptr : ssl.BIO_new(Pipe::Method());
  if (pipe == nullptr) {
    ssl.SSL_free(ssl_);
    throw std::bad_alloc();
  }
  going_.reserve(kBatchBytes + 2 * kRecordBytes);
  record_.reserve(kRecordBytes);
  ssl.BIO_set_data(pipe, this);
  ssl.BIO_set_init(pipe, 1);
  ssl.SSL_set_bio(ssl_, pipe, pipe);
  if (context_->end_ == TlsContext::End::kServer) {
    ssl.SSL_set_accept_state(ssl_);
    return;
  }
  ssl.SSL_set_connect_state(ssl_);
  ssl.SSL_set_alpn_protos(ssl_, kH2, sizeof kH2);
  bool named;
  if (IsAddress(name)) {
    named = ssl.X509_VERIFY_PARAM_set1_ip_asc(ssl.SSL_get0_param(ssl_), name.c_str()) == 1;
  } else {
    ssl.SSL_ctrl(ssl_, kSetHostName, 0, const_cast<char*>(name.c_str()));
    named = !name.empty() && ssl.SSL_set1_host(ssl_, name.c_str()) == 1;
  }
  if (named) return;
  ssl.SSL_free(ssl_);
  throw StatusError("BadRequest", "the server's name is '" + name + "', wanted a host name or an address");
}

TlsStream::~TlsStream() { Ssl().SSL_free(ssl_); }

// What a call of OpenSSL's that gave `result` becomes; sets errno.
int TlsStream::Fail(int result) {
  const int error = Ssl().SSL_get_error(ssl_, result);
  if (error == kErrorWantRead || error == kErrorWantWrite) {
    errno = EAGAIN;
    return -1;
  }
  if (error == kErrorZeroReturn) return 0;
  const long verified = Ssl().SSL_get_verify_result(ssl_);
  problem_ = "TLS: " + Reason();
  if (!over_ && verified != 0) problem_ += std::string(": ") + Ssl().X509_verify_cert_error_string(verified);
  // What OpenSSL has to say of it to the other end.
  Send();
  errno = EPROTO;
  return -1;
}

// What the system takes of what is going. False with errno where that is not all.
bool TlsStream::Send() {
  while (gone_ < going_.size()) {
    const ssize_t n = send(fd_, going_.data() + gone_, going_.size() - gone_, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return false;
    gone_ += static_cast<size_t>(n);
  }
  going_.clear();
  gone_ = 0;
  return true;
}

bool TlsStream::ShakeLocked() {
  // What has failed once OpenSSL does not say again.
  if (!problem_.empty()) {
    errno = EPROTO;
    return false;
  }
  if (over_) return true;
  const OpenSsl& ssl = Ssl();
  ssl.ERR_clear_error();
  const int result = ssl.SSL_do_handshake(ssl_);
  if (result != 1) {
    if (Fail(result) == 0) {
      problem_ = "TLS: the other end ended it";
      errno = EPROTO;
    }
    const int error = errno;
    if (error == EAGAIN) Send();
    errno = error;
    return false;
  }
  const unsigned char* protocol = nullptr;
  unsigned bytes = 0;
  ssl.SSL_get0_alpn_selected(ssl_, &protocol, &bytes);
  if (bytes != kH2[0] || std::memcmp(protocol, kH2 + 1, bytes) != 0) {
    problem_ = "TLS: the other end speaks no HTTP/2";
    errno = EPROTO;
    return false;
  }
  const Certificate certificate(ssl.SSL_get1_peer_certificate(ssl_));
  const Bio text(ssl.BIO_new(ssl.BIO_s_mem()));
  if (certificate != nullptr && ssl.PEM_write_bio_X509(text.get(), certificate.get()) == 1) {
    char part[4096];
    for (int n; (n = ssl.BIO_read(text.get(), part, sizeof part)) > 0;) peer_.append(part, static_cast<size_t>(n));
  }
  over_ = true;
  Send();
  return true;
}

bool TlsStream::Shake() {
  const std::lock_guard lock(mutex_);
  return ShakeLocked();
}

ssize_t TlsStream::Read(const iovec* parts, size_t count) {
  const std::lock_guard lock(mutex_);
  if (!ShakeLocked()) return -1;
  const ssize_t got = ReadRecords(parts, count);
  // What the protocol itself has to say, as that keys have changed.
  if (const int error = errno; !going_.empty()) {
    Send();
    errno = error;
  }
  return got;
}

ssize_t TlsStream::ReadRecords(const iovec* parts, size_t count) {
  const OpenSsl& ssl = Ssl();
  ssl.ERR_clear_error();
  size_t got = 0;
  for (size_t i = 0; i < count; ++i) {
    for (size_t in_part = 0; in_part < parts[i].iov_len;) {
      if (got >= kReadBytesMax) return static_cast<ssize_t>(got);
      const int wanted = static_cast<int>(std::min<size_t>(parts[i].iov_len - in_part, INT_MAX));
      const int n = ssl.SSL_read(ssl_, static_cast<char*>(parts[i].iov_base) + in_part, wanted);
      if (n <= 0) {
        // An end is met again by the next.
        if (got > 0) {
          ssl.ERR_clear_error();
          return static_cast<ssize_t>(got);
        }
        return Fail(n);
      }
      got += static_cast<size_t>(n);
      in_part += static_cast<size_t>(n);
    }
  }
  return static_cast<ssize_t>(got);
}

ssize_t TlsStream::Write(const iovec* parts, size_t count) {
  const std::lock_guard lock(mutex_);
  // Reads nothing: what it took from the socket, whoever waits for that to be readable would not hear of.
  if (!over_ || !problem_.empty()) {
    errno = problem_.empty() ? EAGAIN : EPROTO;
    return -1;
  }
  if (!Send()) return -1;
  const OpenSsl& ssl = Ssl();
  ssl.ERR_clear_error();
  size_t taken = 0;
  // It goes into `going_`, which takes all: so a record is written whole, or the connection is of no use.
  const auto encrypt = [&](const char* bytes, size_t size) {
    if (const int n = ssl.SSL_write(ssl_, bytes, static_cast<int>(size)); n != static_cast<int>(size)) {
      if (Fail(n) == 0 || errno == EAGAIN) errno = EPROTO;
      return false;
    }
    taken += size;
    return true;
  };
  record_.clear();
  for (size_t i = 0; i < count && going_.size() < kBatchBytes; ++i) {
    const char* const bytes = static_cast<const char*>(parts[i].iov_base);
    for (size_t at = 0; at < parts[i].iov_len && going_.size() < kBatchBytes;) {
      const size_t left = parts[i].iov_len - at;
      if (record_.empty() && left >= kRecordBytes) {
        if (!encrypt(bytes + at, kRecordBytes)) return -1;
        at += kRecordBytes;
        continue;
      }
      // Small ones share a record.
      const size_t n = std::min(left, kRecordBytes - record_.size());
      record_.insert(record_.end(), bytes + at, bytes + at + n);
      at += n;
      if (record_.size() < kRecordBytes) continue;
      if (!encrypt(record_.data(), record_.size())) return -1;
      record_.clear();
    }
  }
  if (!record_.empty() && !encrypt(record_.data(), record_.size())) return -1;
  if (!Send() && errno != EAGAIN && errno != EWOULDBLOCK) return -1;
  return static_cast<ssize_t>(taken);
}

bool TlsStream::Flush() {
  const std::lock_guard lock(mutex_);
  return Send();
}

bool TlsStream::ready() const {
  const std::lock_guard lock(mutex_);
  return over_;
}

bool TlsStream::unread() const {
  const std::lock_guard lock(mutex_);
  return came_begin_ < came_end_ || (over_ && Ssl().SSL_pending(ssl_) > 0);
}

bool TlsStream::unsent() const {
  const std::lock_guard lock(mutex_);
  return !going_.empty();
}

std::string TlsStream::problem() const {
  const std::lock_guard lock(mutex_);
  return problem_;
}

}  // namespace tablebay
