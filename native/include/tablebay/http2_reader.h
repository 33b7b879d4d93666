// What both ends of an HTTP/2 connection with gRPC on it do with the bytes that come (RFC 7540).
//
// Frames are told apart here, and their forms checked; what they mean for a call is the end's own. The bytes of a
// message go where the end wants them, from the socket without a copy where they can.
#pragma once

#include <sys/uio.h>

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tablebay/hpack.h"

namespace tablebay {

struct FrameHead;  // http2_frames.h

class Http2Reader {
 public:
  Http2Reader(const Http2Reader&) = delete;
  Http2Reader& operator=(const Http2Reader&) = delete;

  // Where the connection's next bytes go: the second begins where the first is full. The first may be empty.
  std::array<iovec, 2> Space();
  // So many bytes were put there. Throws StatusError(Unavailable) for what is no HTTP/2, after which this is of no use.
  void Took(size_t bytes);

  // Frames that are to be sent before any others; whoever sends them clears it.
  std::string& owed() { return owed_; }
  // A PING, to which the other end owes an answer.
  void Ping();

 protected:
  // A message of gRPC that is on its way: a flag, its size, and its bytes, for which the end has made room.
  struct Incoming {
    std::array<char, 5> prefix{};
    size_t prefix_bytes = 0;
    char* bytes = nullptr;
    size_t size = 0;
    size_t found = 0;
    bool whole() const { return prefix_bytes == prefix.size() && found == size; }
  };

  // other: how errors name the other end. preface: what comes before its first frame. owed_bytes_max: of answers that
  // the other end asks for and does not take.
  Http2Reader(std::string_view other, std::string_view preface, size_t owed_bytes_max);
  virtual ~Http2Reader() = default;

  [[noreturn]] void Malformed(const std::string& what) const;
  void Owe(uint8_t type, uint8_t flags, uint32_t stream, std::string_view payload);
  // Whether the other end has said all that begins a connection.
  bool has_greeted() const { return greeted_; }
  // What else comes of the message under way is of no interest.
  void PassOver() { receiving_ = nullptr; }
  const Incoming* receiving() const { return receiving_; }

  // What may be sent.
  int64_t connection_window_;
  int64_t initial_window_;
  uint32_t frame_max_;

 private:
  // -- the end's. Each may throw by Malformed.

  // DATA of the stream begins: its message, or null where that is passed over.
  virtual Incoming* BeginData(uint32_t stream) = 0;
  // Makes room for the message that is being received, or passes it over. ended: the stream ends with these bytes.
  virtual void BeginMessage(uint32_t stream, uint8_t flag, size_t size, bool ended) = 0;
  // More comes than the message. Passes it over.
  virtual void RefuseMore(uint32_t stream, bool ended) = 0;
  virtual void EndOfStream(uint32_t stream) = 0;

  virtual void BeginHeaders(uint32_t stream) = 0;
  virtual void TakeHeaders(uint32_t stream, const std::vector<HeaderField>& fields, bool ended) = 0;
  // They are larger than kBlockBytesMax. Since those that follow build on them none can be read any more.
  virtual void HeadersTooLarge(uint32_t stream, size_t bytes, bool ended) = 0;
  virtual void HeadersUnread(uint32_t /*stream*/) {}

  virtual void TakeReset(uint32_t stream, uint32_t error) = 0;
  virtual void TakeGoAway(std::string_view /*payload*/) {}
  // The window of each open stream grows by so many bytes, which may be less than none.
  virtual void MoveWindows(int64_t bytes) = 0;
  // Null: the stream is not open any more.
  virtual int64_t* WindowOf(uint32_t stream) = 0;

  // -- the frames

  size_t Direct() const;
  void ReadBuffer();
  void ReadFrame(const FrameHead& frame, std::string_view payload);
  void ReadDataHead(const FrameHead& frame, size_t bytes);
  size_t TakeData(const char* data, size_t bytes);
  void ReadHeaders(const FrameHead& frame, std::string_view payload, size_t bytes);
  void ReadSettings(const FrameHead& frame, std::string_view payload);
  void ReadWindowUpdate(const FrameHead& frame, std::string_view payload);

  const std::string_view other_;
  const std::string_view preface_;
  const size_t owed_bytes_max_;
  HpackDecoder hpack_;
  std::string owed_;
  size_t preface_bytes_ = 0;
  bool greeted_ = false;  // the first frame, SETTINGS, came

  // What lies in the buffer, and of which DATA frame the next bytes are.
  std::vector<char> buffer_;
  size_t begin_ = 0;
  size_t end_ = 0;
  bool in_data_ = false;
  size_t data_left_ = 0;
  size_t padding_left_ = 0;
  uint32_t data_stream_ = 0;
  bool data_ends_stream_ = false;
  Incoming* receiving_ = nullptr;
  uint64_t taken_ = 0;  // of the connection's window, since the other end was last told

  std::string block_;  // of headers that go on in the next frame
  bool in_block_ = false;
  uint32_t block_stream_ = 0;
  bool block_ends_stream_ = false;
  bool deaf_ = false;  // headers cannot be read any more
};

}  // namespace tablebay
