// The client's end of an HTTP/2 connection that carries one unary gRPC call at a time (RFC 7540; gRPC over HTTP/2).
//
// No sockets here: bytes that came go in, bytes to send come out. Whatever a server sends, what is kept of it is
// bounded: one message of message_bytes_max, one header block, one frame that is no DATA, and answers owed to it.
#pragma once

#include <sys/uio.h>

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tablebay/hpack.h"

namespace tablebay {

struct FrameHead;  // http2_frames.h

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

class Http2Client {
 public:
  // Makes room for the answer, once its size is known.
  using Allocate = std::function<char*(size_t)>;

  struct Request {
    std::string_view authority;
    std::string_view path;
    std::string_view user_agent;
    uint64_t timeout_ms;
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

  // -- receiving

  // Where the connection's next bytes go: the second begins where the first is full. The first may be empty.
  std::array<iovec, 2> Space();
  // So many bytes were put there. Throws StatusError(Unavailable) for what is no HTTP/2, after which this is of no use.
  void Took(size_t bytes);

  // -- sending

  // Frames that are to be sent before any other DATA; whoever sends them clears it.
  std::string& owed() { return owed_; }
  // How large the next DATA frame may be; 0 while the server has no room, or wants no more.
  size_t DataMax() const;
  // Appends the head of a DATA frame of so many bytes, which count as sent.
  void AppendDataHead(size_t bytes, bool last, std::array<char, 9>* head);
  // A PING, to which the server owes an answer.
  void Ping();

 private:
  size_t Direct() const;
  void ReadBuffer();
  void ReadFrame(const FrameHead& frame, std::string_view payload);
  void BeginData(const FrameHead& frame, size_t bytes);
  size_t TakeData(const char* data, size_t bytes);
  void EndData();
  void ReadHeaders(const FrameHead& frame, std::string_view payload);
  void ReadBlock(bool end_stream);
  void ReadSettings(const FrameHead& frame, std::string_view payload);
  void ReadReset(const FrameHead& frame, std::string_view payload);
  void ReadGoAway(const FrameHead& frame, std::string_view payload);
  void ReadWindowUpdate(const FrameHead& frame, std::string_view payload);
  void EndOfStream();
  void End(CallStatus status, bool clean = false);
  void Owe(uint8_t type, uint8_t flags, uint32_t stream, std::string_view payload);

  const uint64_t message_bytes_max_;
  HpackDecoder hpack_;
  bool greeted_ = false;  // the server's first frame was SETTINGS
  bool going_away_ = false;
  std::string owed_;

  // Sending.
  int64_t connection_window_ = 65535;
  int64_t stream_window_ = 0;
  int64_t initial_window_ = 65535;
  uint32_t frame_max_ = 16384;

  // Receiving: what lies in the buffer, and of which DATA frame the next bytes are.
  std::vector<char> buffer_;
  size_t begin_ = 0;
  size_t end_ = 0;
  size_t data_left_ = 0;
  size_t padding_left_ = 0;
  bool data_ends_stream_ = false;
  bool in_data_ = false;
  uint64_t taken_ = 0;  // of the connection's window, since it was last told
  std::string block_;   // of headers that go on in the next frame
  bool in_block_ = false;
  bool block_ends_stream_ = false;

  // The call.
  uint32_t stream_ = 0;
  Allocate allocate_;
  std::optional<CallStatus> status_;
  bool clean_ = false;
  bool sent_all_ = false;
  bool headed_ = false;  // its response headers came
  uint32_t http_status_ = 0;
  std::optional<uint32_t> grpc_status_;
  std::string grpc_message_;
  std::optional<std::string> kind_;
  std::array<char, 5> prefix_{};
  size_t prefix_bytes_ = 0;
  char* message_ = nullptr;
  size_t message_bytes_ = 0;
  size_t message_found_ = 0;
};

}  // namespace tablebay
