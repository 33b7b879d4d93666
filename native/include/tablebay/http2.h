// The client's end of an HTTP/2 connection that carries one unary gRPC call at a time (RFC 7540; gRPC over HTTP/2).
//
// No sockets here: bytes that came go in, bytes to send come out. Whatever a server sends, what is kept of it is
// bounded: one message of message_bytes_max, one header block, one frame that is no DATA, and answers owed to it.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tablebay/http2_reader.h"

namespace tablebay {

// What became of a call, in gRPC's terms.
struct CallStatus {
  uint32_t code;                      // as gRPC numbers them
  std::string message;                // bytes, UTF-8 if the server keeps to gRPC
  std::optional<std::string> kind{};  // of the metadata under kErrorMetadata
};

constexpr uint32_t kGrpcOk = 0;
constexpr uint32_t kGrpcCancelled = 1;
constexpr uint32_t kGrpcUnknown = 2;
constexpr uint32_t kGrpcDeadlineExceeded = 4;
constexpr uint32_t kGrpcPermissionDenied = 7;
constexpr uint32_t kGrpcResourceExhausted = 8;
constexpr uint32_t kGrpcUnimplemented = 12;
constexpr uint32_t kGrpcInternal = 13;
constexpr uint32_t kGrpcUnavailable = 14;
constexpr uint32_t kGrpcUnauthenticated = 16;

// Where a server names the class of an error (client/errors.py).
constexpr std::string_view kErrorMetadata = "tablebay-error";

class Http2Client : public Http2Reader {
 public:
  // Makes room for the answer, once its size is known.
  using Allocate = std::function<char*(size_t)>;

  struct Request {
    std::string_view authority;
    std::string_view path;
    std::string_view user_agent;
    uint64_t timeout_ms;
    bool secure = false;  // over TLS
  };

  explicit Http2Client(uint64_t message_bytes_max);

  // -- a call

  // Whether another call may begin: not after GOAWAY, nor where stream numbers end.
  bool usable() const;
  // REQUIRES usable() and the call before it over. What follows is the new call's.
  void Begin(const Request& request, Allocate allocate);
  // Set once the server said all, or what it said ends the call.
  const std::optional<CallStatus>& status() const { return status_; }
  // Whether the connection is as it was before the call: status() is the server's, and it waits for nothing.
  bool clean() const { return status_ && clean_; }

  // -- sending

  // How large the next DATA frame may be; 0 while the server has no room, or wants no more.
  size_t DataMax() const;
  // Appends the head of a DATA frame of so many bytes, which count as sent.
  void AppendDataHead(size_t bytes, bool last, std::array<char, 9>* head);

 private:
  Incoming* BeginData(uint32_t stream) override;
  void BeginMessage(uint32_t stream, uint8_t flag, size_t size, bool ended) override;
  void RefuseMore(uint32_t stream, bool ended) override;
  void EndOfStream(uint32_t stream) override;
  void BeginHeaders(uint32_t stream) override;
  void TakeHeaders(uint32_t stream, const std::vector<HeaderField>& fields, bool ended) override;
  void HeadersTooLarge(uint32_t stream, size_t bytes, bool ended) override;
  void TakeReset(uint32_t stream, uint32_t error) override;
  void TakeGoAway(std::string_view payload) override;
  void MoveWindows(int64_t bytes) override;
  int64_t* WindowOf(uint32_t stream) override;
  void End(CallStatus status, bool clean = false);

  const uint64_t message_bytes_max_;
  bool going_away_ = false;

  // The call.
  uint32_t stream_ = 0;
  int64_t stream_window_ = 0;
  Allocate allocate_;
  std::optional<CallStatus> status_;
  bool clean_ = false;
  bool sent_all_ = false;
  bool headed_ = false;  // its response headers came
  uint32_t http_status_ = 0;
  std::optional<uint32_t> grpc_status_;
  std::string grpc_message_;
  std::optional<std::string> kind_;
  Incoming message_;
};

}  // namespace tablebay
