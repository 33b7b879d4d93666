// The server's end of an HTTP/2 connection that carries unary gRPC calls (RFC 7540; gRPC over HTTP/2).
//
// No sockets and no threads here: bytes that came go in, calls that came whole come out, and the bytes that answer
// them. Whatever a client sends, what is kept of it is bounded: so many streams, each with a message, one header block,
// and one frame that is no DATA. What is owed is for whoever sends it to bound.
// Thread safety: none; but Space's memory may be written while another thread sends.
#pragma once

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

#include "tablebay/http2.h"
#include "tablebay/http2_reader.h"

namespace tablebay {

// A request's bytes.
struct Message {
  std::unique_ptr<char[]> bytes;
  size_t size = 0;
  size_t capacity = 0;
  std::string_view view() const { return {bytes.get(), size}; }
};

class Http2Host : public Http2Reader {
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

  // The next call, in the order in which they became whole.
  std::optional<Call> Next();
  // Whether the client has said all that begins a connection.
  bool greeted() const { return has_greeted(); }

  // -- sending

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
  size_t streams() const { return streams_.size(); }

 private:
  struct Stream {
    std::string path;
    uint64_t timeout_us = UINT64_MAX;
    int64_t window = 0;
    bool whole = false;
    Incoming incoming;
    Message message;  // what incoming fills
  };

  Incoming* BeginData(uint32_t stream) override;
  void BeginMessage(uint32_t number, uint8_t flag, size_t size, bool ended) override;
  void RefuseMore(uint32_t stream, bool ended) override;
  void EndOfStream(uint32_t number) override;
  void BeginHeaders(uint32_t stream) override;
  void TakeHeaders(uint32_t stream, const std::vector<HeaderField>& fields, bool ended) override;
  void HeadersTooLarge(uint32_t stream, size_t bytes, bool ended) override;
  void HeadersUnread(uint32_t stream) override;
  void TakeReset(uint32_t stream, uint32_t error) override;
  void MoveWindows(int64_t bytes) override;
  int64_t* WindowOf(uint32_t stream) override;
  void Open(uint32_t number, const std::vector<HeaderField>& fields, bool ended);
  void Refuse(uint32_t stream, uint32_t code, std::string message, bool ended);
  void Forget(uint32_t stream);
  void Reset(uint32_t stream, uint32_t error);

  const Limits limits_;
  const Allocate allocate_;
  const GiveBack give_back_;
  bool going_away_ = false;
  uint32_t last_stream_ = 0;  // the highest that the client has begun
  std::unordered_map<uint32_t, Stream> streams_;
  std::deque<uint32_t> whole_;
};

}  // namespace tablebay
