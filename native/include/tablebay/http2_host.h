// The server's end of an HTTP/2 connection that carries unary gRPC calls (RFC 7540; gRPC over HTTP/2).
//
// No sockets and no threads here: bytes that came go in, calls that came whole come out, and the bytes that answer
// them. Whatever a client sends, what is kept of it is bounded: so many streams, each with a message, one header block,
// and one frame that is no DATA. What is owed is for whoever sends it to bound.
// Thread safety: none; but Space's memory may be written while another thread sends.
#pragma once

#include <sys/uio.h>

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tablebay/hpack.h"
#include "tablebay/http2.h"

namespace tablebay {

// A request's bytes.
struct Message {
  std::unique_ptr<char[]> bytes;
  size_t size = 0;
  size_t capacity = 0;
  std::string_view view() const { return {bytes.get(), size}; }
};

class Http2Host {
 public:
  struct Limits {
    uint64_t message_bytes_max;
    uint32_t streams_max;
    uint64_t metadata_bytes_max;
  };
  // Makes room for a message of so many bytes.
  using Allocate = std::function<Message(size_t)>;
  // Takes back what is not needed any more.
  using GiveBack = std::function<void(Message)>;

  // A request that came whole. It is open until Close.
  struct Call {
    uint32_t stream;
    std::string path;
    uint64_t timeout_us;  // from the moment when its headers came; UINT64_MAX: none
    Message message;
  };

  Http2Host(const Limits& limits, Allocate allocate, GiveBack give_back);

  // -- receiving

  // Where the connection's next bytes go: the second begins where the first is full. The first may be empty.
  std::array<iovec, 2> Space();
  // So many bytes were put there. Throws StatusError(Unavailable) for what is no HTTP/2, after which this is of no use.
  void Took(size_t bytes);
  // The next call, in the order in which they became whole.
  std::optional<Call> Next();
  // Whether the client has said all that begins a connection.
  bool greeted() const { return greeted_; }

  // -- sending

  // Frames that are to be sent before any others; whoever sends them clears it.
  std::string& owed() { return owed_; }
  // Whether the client still waits for the stream's answer.
  bool open(uint32_t stream) const { return streams_.contains(stream); }
  // How large the stream's next DATA frame may be; 0 while the client has no room.
  size_t DataMax(uint32_t stream) const;
  // The head of a DATA frame of so many bytes, which count as sent.
  std::array<char, 9> DataHead(uint32_t stream, size_t bytes);
  // The frame before an answer's DATA, and the one behind it.
  static std::string AnswerHead(uint32_t stream);
  static std::string AnswerTail(uint32_t stream);
  // All of an answer that is no OK.
  static std::string Refusal(uint32_t stream, const CallStatus& status);
  // The answer has been sent, or never will be.
  void Close(uint32_t stream);
  // No new streams from now on: those that come are refused.
  void GoAway();
  // A PING, to which the client owes an answer.
  void Ping();
  size_t streams() const { return streams_.size(); }

 private:
  struct Stream {
    std::string path;
    uint64_t timeout_us = UINT64_MAX;
    int64_t window = 0;
    bool whole = false;
    std::array<char, 5> prefix{};
    size_t prefix_bytes = 0;
    size_t found = 0;
    Message message;
  };

  size_t Direct() const;
  void ReadBuffer();
  void ReadFrame(uint8_t type, uint8_t flags, uint32_t stream, std::string_view payload);
  void BeginData(uint8_t flags, uint32_t stream, size_t bytes);
  size_t TakeData(const char* data, size_t bytes);
  void EndData();
  void ReadHeaders(uint8_t type, uint8_t flags, uint32_t stream, std::string_view payload, bool fits);
  void GoDeaf();
  void ReadBlock();
  void Open(uint32_t stream, const std::vector<HeaderField>& fields, bool end_stream);
  void EndOfStream(uint32_t number);
  void ReadSettings(uint8_t flags, uint32_t stream, std::string_view payload);
  void ReadWindowUpdate(uint32_t stream, std::string_view payload);
  void Refuse(uint32_t stream, uint32_t code, std::string message, bool ended);
  void Forget(uint32_t stream);
  void Reset(uint32_t stream, uint32_t error);
  void Owe(uint8_t type, uint8_t flags, uint32_t stream, std::string_view payload);

  const Limits limits_;
  const Allocate allocate_;
  const GiveBack give_back_;
  HpackDecoder hpack_;
  size_t preface_bytes_ = 0;
  bool greeted_ = false;  // its first frame, SETTINGS, came
  bool going_away_ = false;
  bool deaf_ = false;  // headers cannot be read any more
  std::string owed_;

  // Sending.
  int64_t connection_window_;
  int64_t initial_window_;
  uint32_t frame_max_;

  // Receiving: what lies in the buffer, and of which DATA frame the next bytes are.
  std::vector<char> buffer_;
  size_t begin_ = 0;
  size_t end_ = 0;
  size_t data_left_ = 0;
  size_t padding_left_ = 0;
  uint32_t data_stream_ = 0;
  bool data_ends_stream_ = false;
  bool in_data_ = false;
  uint64_t taken_ = 0;  // of the connection's window, since it was last told
  std::string block_;   // of headers that go on in the next frame
  bool in_block_ = false;
  bool block_ends_stream_ = false;
  uint32_t block_stream_ = 0;

  uint32_t last_stream_ = 0;  // the highest that the client has begun
  std::unordered_map<uint32_t, Stream> streams_;
  Stream* receiving_ = nullptr;  // of the DATA frame under way; null where what comes is passed over
  std::deque<uint32_t> whole_;
};

}  // namespace tablebay
