#include "tablebay/http2_reader.h"

#include <algorithm>
#include <cstring>

#include "http2_frames.h"
#include "tablebay/status.h"

namespace tablebay {
namespace {

// A frame that is no DATA has to fit in the buffer.
constexpr size_t kBufferBytes = 64 * 1024;
// When half of the connection's window is used it is filled again.
constexpr uint64_t kTopUp = kWindowMax / 2;

}  // namespace

Http2Reader::Http2Reader(std::string_view other, std::string_view preface, size_t owed_bytes_max)
    : connection_window_(kWindowDefault),
      initial_window_(kWindowDefault),
      frame_max_(kFrameMin),
      other_(other),
      preface_(preface),
      owed_bytes_max_(owed_bytes_max),
      buffer_(kBufferBytes) {}

void Http2Reader::Malformed(const std::string& what) const {
  throw StatusError("Unavailable", "the " + std::string(other_) + " sent what is no HTTP/2: " + what);
}

void Http2Reader::Owe(uint8_t type, uint8_t flags, uint32_t stream, std::string_view payload) {
  AppendFrame(type, flags, stream, payload, &owed_);
  if (owed_.size() > owed_bytes_max_) Malformed("it asks and takes no answers");
}

void Http2Reader::Ping() { Owe(kPing, 0, 0, "tablebay"); }

std::array<iovec, 2> Http2Reader::Space() {
  if (begin_ == end_) {
    begin_ = end_ = 0;
  } else if (begin_ > 0) {
    // Less than a frame that is no DATA.
    std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
  }
  const size_t direct = Direct();
  char* const to = direct == 0 ? nullptr : receiving_->bytes + receiving_->found;
  return {iovec{to, direct}, iovec{buffer_.data() + end_, buffer_.size() - end_}};
}

// How many of the next bytes belong to a message.
size_t Http2Reader::Direct() const {
  if (end_ > 0 || !in_data_ || receiving_ == nullptr || receiving_->bytes == nullptr) return 0;
  return std::min(data_left_, receiving_->size - receiving_->found);
}

void Http2Reader::Took(size_t bytes) {
  const size_t direct = std::min(bytes, Direct());
  if (direct > 0) {
    receiving_->found += direct;
    data_left_ -= direct;
  }
  end_ += bytes - direct;
  ReadBuffer();
}

void Http2Reader::ReadBuffer() {
  for (; preface_bytes_ < preface_.size() && begin_ < end_; ++preface_bytes_, ++begin_) {
    if (buffer_[begin_] != preface_[preface_bytes_]) Malformed("it does not begin as HTTP/2 does");
  }
  while (true) {
    if (in_data_) {
      begin_ += TakeData(buffer_.data() + begin_, end_ - begin_);
      if (data_left_ > 0 || padding_left_ > 0) return;
      in_data_ = false;
      receiving_ = nullptr;
      if (data_ends_stream_) EndOfStream(data_stream_);
      continue;
    }
    const size_t found = end_ - begin_;
    if (found < kHeadBytes) return;
    const char* const head = buffer_.data() + begin_;
    const size_t bytes = Load24(head);
    const FrameHead frame = ReadHead(head);
    if (!greeted_ && frame.type != kSettings) {
      Malformed("its first frame is no SETTINGS; is it a gRPC " + std::string(other_) + "?");
    }
    if (in_block_ && frame.type != kContinuation) Malformed("a frame between those of a header block");
    if (frame.type == kData) {
      const size_t pad_head = (frame.flags & kPadded) != 0 ? 1 : 0;
      if (bytes < pad_head) Malformed("a padded frame without its padding");
      if (found < kHeadBytes + pad_head) return;
      padding_left_ = pad_head != 0 ? static_cast<uint8_t>(head[kHeadBytes]) : 0;
      if (padding_left_ > bytes - pad_head) Malformed("a frame shorter than its padding");
      begin_ += kHeadBytes + pad_head;
      data_left_ = bytes - pad_head - padding_left_;
      ReadDataHead(frame, bytes);
      continue;
    }
    if (bytes > kBufferBytes - kHeadBytes) {
      if (frame.type != kHeaders && frame.type != kContinuation) {
        Malformed(Format("a frame of type %u with %zu bytes", frame.type, bytes));
      }
      // Too large to be read, and so passed over as DATA of nobody is.
      ReadHeaders(frame, {}, bytes);
      begin_ += kHeadBytes;
      in_data_ = true;
      receiving_ = nullptr;
      data_left_ = bytes;
      data_ends_stream_ = false;
      continue;
    }
    if (found < kHeadBytes + bytes) return;
    begin_ += kHeadBytes + bytes;
    ReadFrame(frame, {head + kHeadBytes, bytes});
  }
}

void Http2Reader::ReadDataHead(const FrameHead& frame, size_t bytes) {
  receiving_ = BeginData(frame.stream);
  data_stream_ = frame.stream;
  data_ends_stream_ = (frame.flags & kEndStream) != 0;
  in_data_ = true;
  taken_ += bytes;
  if (taken_ < kTopUp) return;
  char more[4];
  Store32(static_cast<uint32_t>(taken_), more);
  Owe(kWindowUpdate, 0, 0, {more, sizeof more});
  taken_ = 0;
}

// How many of the bytes belong to the frame.
size_t Http2Reader::TakeData(const char* data, size_t bytes) {
  size_t at = 0;
  while (at < bytes && data_left_ > 0) {
    if (receiving_ == nullptr) {
      const size_t n = std::min(bytes - at, data_left_);
      at += n;
      data_left_ -= n;
      continue;
    }
    Incoming& message = *receiving_;
    if (message.prefix_bytes < message.prefix.size()) {
      message.prefix[message.prefix_bytes++] = data[at++];
      --data_left_;
      if (message.prefix_bytes < message.prefix.size()) continue;
      BeginMessage(data_stream_, static_cast<uint8_t>(message.prefix[0]), Load32(message.prefix.data() + 1),
                   data_ends_stream_ && data_left_ == 0);
      continue;
    }
    const size_t n = std::min({bytes - at, data_left_, message.size - message.found});
    if (n == 0) {
      RefuseMore(data_stream_, data_ends_stream_);
      continue;
    }
    std::memcpy(message.bytes + message.found, data + at, n);
    at += n;
    message.found += n;
    data_left_ -= n;
  }
  if (data_left_ == 0) {
    const size_t n = std::min(bytes - at, padding_left_);
    at += n;
    padding_left_ -= n;
  }
  return at;
}

void Http2Reader::ReadFrame(const FrameHead& frame, std::string_view payload) {
  switch (frame.type) {
    case kHeaders:
    case kContinuation:
      return ReadHeaders(frame, payload, payload.size());
    case kResetStream:
      if (frame.stream == 0 || payload.size() != 4) Malformed("RST_STREAM of a wrong form");
      return TakeReset(frame.stream, Load32(payload.data()));
    case kSettings:
      return ReadSettings(frame, payload);
    case kPing:
      if (payload.size() != 8 || frame.stream != 0) Malformed("a PING of a wrong form");
      if ((frame.flags & kAck) == 0) Owe(kPing, kAck, 0, payload);
      return;
    case kGoAway:
      if (frame.stream != 0 || payload.size() < 8) Malformed("GOAWAY of a wrong form");
      return TakeGoAway(payload);
    case kWindowUpdate:
      return ReadWindowUpdate(frame, payload);
    case kPushPromise:
      Malformed("a PUSH_PROMISE, which nobody asked for");
    case kPriority:
    default:
      return;  // of no meaning here, or unknown, which is passed over
  }
}

// The payload has so many bytes, or is not there.
void Http2Reader::ReadHeaders(const FrameHead& frame, std::string_view payload, size_t bytes) {
  const bool fits = payload.size() == bytes;
  if (frame.type == kHeaders) {
    BeginHeaders(frame.stream);
    if (fits && !TakeBlock(frame.flags, &payload)) Malformed("headers of a wrong form");
    block_.clear();
    block_stream_ = frame.stream;
    block_ends_stream_ = (frame.flags & kEndStream) != 0;
  } else if (!in_block_ || frame.stream != block_stream_) {
    Malformed("a CONTINUATION of nothing");
  }
  in_block_ = (frame.flags & kEndHeaders) == 0;
  if (!deaf_ && (!fits || block_.size() + bytes > kBlockBytesMax)) {
    deaf_ = true;
    HeadersTooLarge(block_stream_, block_.size() + bytes, block_ends_stream_);
    block_.clear();
  }
  if (deaf_) {
    if (!in_block_) HeadersUnread(block_stream_);
    return;
  }
  block_.append(payload);
  // Decoded in any case, since later blocks build on it.
  if (!in_block_) TakeHeaders(block_stream_, hpack_.Decode(block_), block_ends_stream_);
}

void Http2Reader::ReadSettings(const FrameHead& frame, std::string_view payload) {
  greeted_ = true;
  if (frame.stream != 0 || payload.size() % 6 != 0) Malformed("SETTINGS of a wrong form");
  if ((frame.flags & kAck) != 0) return;
  for (; !payload.empty(); payload.remove_prefix(6)) {
    const auto name = static_cast<uint16_t>(Load24(payload.data()) >> 8);
    const uint32_t value = Load32(payload.data() + 2);
    if (name == kInitialWindow) {
      if (value > kWindowMax) Malformed(Format("a window of %u bytes", value));
      // May become negative, and is then waited for.
      MoveWindows(int64_t{value} - initial_window_);
      initial_window_ = value;
    } else if (name == kMaxFrame) {
      if (value < kFrameMin || value > kFrameMax) Malformed(Format("frames of at most %u bytes", value));
      frame_max_ = value;
    }
  }
  Owe(kSettings, kAck, 0, {});
}

void Http2Reader::ReadWindowUpdate(const FrameHead& frame, std::string_view payload) {
  if (payload.size() != 4) Malformed("WINDOW_UPDATE of a wrong form");
  const uint32_t more = Load32(payload.data()) & kWindowMax;
  int64_t* const window = frame.stream == 0 ? &connection_window_ : WindowOf(frame.stream);
  if (window == nullptr) return;
  *window += more;
  if (more == 0 || *window > kWindowMax) Malformed(Format("a window that grows by %u bytes", more));
}

}  // namespace tablebay
