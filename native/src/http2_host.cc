#include "tablebay/http2_host.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "http2_frames.h"
#include "tablebay/status.h"

namespace tablebay {
namespace {

// A frame that is no DATA has to fit in the buffer.
constexpr size_t kBufferBytes = 64 * 1024;
constexpr size_t kBlockBytesMax = 64 * 1024;
// When half of the connection's window is used it is filled again.
constexpr uint64_t kTopUp = kWindowMax / 2;

[[noreturn]] void Refuse(const std::string& what) {
  throw StatusError("Unavailable", "the client sent what is no HTTP/2: " + what);
}

// Microseconds of a grpc-timeout; nullopt where it is none.
std::optional<uint64_t> Timeout(std::string_view text) {
  if (text.size() < 2 || text.size() > 9) return std::nullopt;
  uint64_t value = 0;
  for (const char c : text.substr(0, text.size() - 1)) {
    if (c < '0' || c > '9') return std::nullopt;
    value = value * 10 + static_cast<uint64_t>(c - '0');
  }
  switch (text.back()) {
    case 'H':
      return value * 3'600'000'000;
    case 'M':
      return value * 60'000'000;
    case 'S':
      return value * 1'000'000;
    case 'm':
      return value * 1000;
    case 'u':
      return value;
    case 'n':
      return value / 1000;
    default:
      return std::nullopt;
  }
}

// As gRPC escapes a message.
std::string Escape(std::string_view text) {
  constexpr char kDigits[] = "0123456789ABCDEF";
  std::string escaped;
  for (const char c : text) {
    const auto byte = static_cast<uint8_t>(c);
    if (byte >= 0x20 && byte <= 0x7e && c != '%') {
      escaped.push_back(c);
      continue;
    }
    escaped.push_back('%');
    escaped.push_back(kDigits[byte >> 4]);
    escaped.push_back(kDigits[byte & 15]);
  }
  return escaped;
}

std::string HeadersFrame(uint8_t flags, uint32_t stream, std::string_view block) {
  std::string frame;
  AppendFrame(kHeaders, flags | kEndHeaders, stream, block, &frame);
  return frame;
}

}  // namespace

Http2Host::Http2Host(const Limits& limits, Allocate allocate, GiveBack give_back)
    : limits_(limits),
      allocate_(std::move(allocate)),
      give_back_(std::move(give_back)),
      connection_window_(kWindowDefault),
      initial_window_(kWindowDefault),
      frame_max_(kFrameMin),
      buffer_(kBufferBytes) {
  std::string settings;
  AppendSetting(kMaxStreams, limits.streams_max, &settings);
  AppendSetting(kInitialWindow, kWindowMax, &settings);
  AppendSetting(kMaxFrame, kFrameMax, &settings);
  AppendSetting(kMaxHeaderList, static_cast<uint32_t>(limits.metadata_bytes_max), &settings);
  Owe(kSettings, 0, 0, settings);
  AppendNumberFrame(kWindowUpdate, 0, kWindowMax - kWindowDefault, &owed_);
}

void Http2Host::Owe(uint8_t type, uint8_t flags, uint32_t stream, std::string_view payload) {
  AppendFrame(type, flags, stream, payload, &owed_);
}

void Http2Host::Reset(uint32_t stream, uint32_t error) { AppendNumberFrame(kResetStream, stream, error, &owed_); }

// -- sending

size_t Http2Host::DataMax(uint32_t stream) const {
  const auto found = streams_.find(stream);
  if (found == streams_.end()) return 0;
  const int64_t window = std::min(connection_window_, found->second.window);
  return window <= 0 ? 0 : std::min<size_t>(static_cast<size_t>(window), frame_max_);
}

std::array<char, 9> Http2Host::DataHead(uint32_t stream, size_t bytes) {
  connection_window_ -= static_cast<int64_t>(bytes);
  streams_.at(stream).window -= static_cast<int64_t>(bytes);
  return Head(bytes, kData, 0, stream);
}

std::string Http2Host::AnswerHead(uint32_t stream) {
  std::string block;
  AppendIndexed(kStatus200, &block);
  AppendHeader(kContentType, {}, "application/grpc", &block);
  return HeadersFrame(0, stream, block);
}

std::string Http2Host::AnswerTail(uint32_t stream) {
  std::string block;
  AppendHeader(0, "grpc-status", "0", &block);
  return HeadersFrame(kEndStream, stream, block);
}

std::string Http2Host::Refusal(uint32_t stream, const CallStatus& status) {
  std::string block;
  AppendIndexed(kStatus200, &block);
  AppendHeader(kContentType, {}, "application/grpc", &block);
  AppendHeader(0, "grpc-status", std::to_string(status.code), &block);
  AppendHeader(0, "grpc-message", Escape(status.message), &block);
  if (status.code == kGrpcUnimplemented) AppendHeader(0, "grpc-accept-encoding", "identity", &block);
  if (status.kind) AppendHeader(0, kErrorMetadata, *status.kind, &block);
  return HeadersFrame(kEndStream, stream, block);
}

void Http2Host::Close(uint32_t stream) { Forget(stream); }

void Http2Host::Forget(uint32_t stream) {
  const auto found = streams_.find(stream);
  if (found == streams_.end()) return;
  if (receiving_ == &found->second) receiving_ = nullptr;
  if (found->second.message.bytes != nullptr) {
    give_back_(std::move(found->second.message));
  }
  streams_.erase(found);
}

void Http2Host::GoAway() {
  if (going_away_) return;
  going_away_ = true;
  char payload[8];
  Store32(last_stream_, payload);
  Store32(kNoError, payload + 4);
  AppendFrame(kGoAway, 0, 0, {payload, sizeof payload}, &owed_);
}

void Http2Host::Ping() { Owe(kPing, 0, 0, "tablebay"); }

// The client has not said all yet, and need not.
void Http2Host::Refuse(uint32_t stream, uint32_t code, std::string message, bool ended) {
  owed_ += Refusal(stream, {code, std::move(message)});
  if (!ended) Reset(stream, kNoError);
  Forget(stream);
}

// -- receiving

std::array<iovec, 2> Http2Host::Space() {
  if (begin_ == end_) {
    begin_ = end_ = 0;
  } else if (begin_ > 0) {
    // Less than a frame that is no DATA.
    std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
  }
  const size_t direct = Direct();
  char* const to = direct == 0 ? nullptr : receiving_->message.bytes.get() + receiving_->found;
  return {iovec{to, direct}, iovec{buffer_.data() + end_, buffer_.size() - end_}};
}

// How many of the next bytes belong to a message.
size_t Http2Host::Direct() const {
  if (end_ > 0 || !in_data_ || receiving_ == nullptr || receiving_->message.bytes == nullptr) return 0;
  return std::min(data_left_, receiving_->message.size - receiving_->found);
}

void Http2Host::Took(size_t bytes) {
  const size_t direct = std::min(bytes, Direct());
  if (direct > 0) {
    receiving_->found += direct;
    data_left_ -= direct;
  }
  end_ += bytes - direct;
  ReadBuffer();
}

void Http2Host::ReadBuffer() {
  for (; preface_bytes_ < kPreface.size() && begin_ < end_; ++preface_bytes_, ++begin_) {
    if (buffer_[begin_] != kPreface[preface_bytes_]) tablebay::Refuse("it does not begin as HTTP/2 does");
  }
  while (true) {
    if (in_data_) {
      begin_ += TakeData(buffer_.data() + begin_, end_ - begin_);
      if (data_left_ > 0 || padding_left_ > 0) return;
      EndData();
      continue;
    }
    const size_t found = end_ - begin_;
    if (found < kHeadBytes) return;
    const char* const head = buffer_.data() + begin_;
    const size_t bytes = Load24(head);
    const FrameHead frame = ReadHead(head);
    if (!greeted_ && frame.type != kSettings) tablebay::Refuse("its first frame is no SETTINGS");
    if (in_block_ && frame.type != kContinuation) tablebay::Refuse("a frame between those of a header block");
    if (frame.type == kData) {
      const size_t pad_head = (frame.flags & kPadded) != 0 ? 1 : 0;
      if (bytes < pad_head) tablebay::Refuse("a padded frame without its padding");
      if (found < kHeadBytes + pad_head) return;
      padding_left_ = pad_head != 0 ? static_cast<uint8_t>(head[kHeadBytes]) : 0;
      if (padding_left_ > bytes - pad_head) tablebay::Refuse("a frame shorter than its padding");
      begin_ += kHeadBytes + pad_head;
      data_left_ = bytes - pad_head - padding_left_;
      BeginData(frame.flags, frame.stream, bytes);
      continue;
    }
    if (bytes > kBufferBytes - kHeadBytes) {
      if (frame.type != kHeaders && frame.type != kContinuation) {
        tablebay::Refuse(Format("a frame of type %u with %zu bytes", frame.type, bytes));
      }
      // Too large to be read, and so passed over as DATA of nobody is.
      ReadHeaders(frame.type, frame.flags, frame.stream, {}, false);
      begin_ += kHeadBytes;
      in_data_ = true;
      receiving_ = nullptr;
      data_left_ = bytes;
      data_ends_stream_ = false;
      continue;
    }
    if (found < kHeadBytes + bytes) return;
    begin_ += kHeadBytes + bytes;
    ReadFrame(frame.type, frame.flags, frame.stream, {head + kHeadBytes, bytes});
  }
}

void Http2Host::BeginData(uint8_t flags, uint32_t stream, size_t bytes) {
  if (stream == 0 || stream > last_stream_) tablebay::Refuse(Format("DATA of stream %u, which is not open", stream));
  const auto found = streams_.find(stream);
  // Of one that is over, for the client may not know that yet.
  receiving_ = found == streams_.end() ? nullptr : &found->second;
  if (receiving_ != nullptr && receiving_->whole) tablebay::Refuse("DATA behind the end of its stream");
  data_stream_ = stream;
  data_ends_stream_ = (flags & kEndStream) != 0;
  in_data_ = true;
  taken_ += bytes;
  if (taken_ >= kTopUp) {
    AppendNumberFrame(kWindowUpdate, 0, static_cast<uint32_t>(taken_), &owed_);
    taken_ = 0;
  }
}

// How many of the bytes belong to the frame.
size_t Http2Host::TakeData(const char* data, size_t bytes) {
  size_t at = 0;
  while (at < bytes && data_left_ > 0) {
    Stream* const stream = receiving_;
    if (stream == nullptr) {
      const size_t n = std::min(bytes - at, data_left_);
      at += n;
      data_left_ -= n;
    } else if (stream->prefix_bytes < stream->prefix.size()) {
      stream->prefix[stream->prefix_bytes++] = data[at++];
      --data_left_;
      if (stream->prefix_bytes < stream->prefix.size()) continue;
      const size_t size = Load32(stream->prefix.data() + 1);
      const bool ended = data_ends_stream_ && data_left_ == 0;
      if (stream->prefix[0] != 0) {
        Refuse(data_stream_, kGrpcUnimplemented,
               Format("the request's message is compressed (flag %u), wanted identity",
                      static_cast<uint8_t>(stream->prefix[0])),
               ended);
      } else if (size > limits_.message_bytes_max) {
        Refuse(data_stream_, kGrpcResourceExhausted,
               Format("SERVER: Received message larger than max (%zu vs. %llu)", size,
                      static_cast<unsigned long long>(limits_.message_bytes_max)),
               ended);
      } else {
        try {
          stream->message = allocate_(size);
        } catch (const std::bad_alloc&) {
          Refuse(data_stream_, kGrpcResourceExhausted, "the server has no memory left for this request", ended);
        }
      }
    } else {
      const size_t n = std::min({bytes - at, data_left_, stream->message.size - stream->found});
      if (n == 0) {
        Refuse(data_stream_, kGrpcUnimplemented, "the request has more than one message", data_ends_stream_);
        continue;
      }
      std::memcpy(stream->message.bytes.get() + stream->found, data + at, n);
      at += n;
      stream->found += n;
      data_left_ -= n;
    }
  }
  if (data_left_ == 0) {
    const size_t n = std::min(bytes - at, padding_left_);
    at += n;
    padding_left_ -= n;
  }
  return at;
}

void Http2Host::EndData() {
  in_data_ = false;
  receiving_ = nullptr;
  if (data_ends_stream_) EndOfStream(data_stream_);
}

void Http2Host::EndOfStream(uint32_t number) {
  const auto found = streams_.find(number);
  if (found == streams_.end()) return;
  Stream& stream = found->second;
  if (stream.prefix_bytes < stream.prefix.size() || stream.found < stream.message.size) {
    return Refuse(number, kGrpcInternal, "the request ends within its message", true);
  }
  stream.whole = true;
  whole_.push_back(number);
}

std::optional<Http2Host::Call> Http2Host::Next() {
  while (!whole_.empty()) {
    const uint32_t number = whole_.front();
    whole_.pop_front();
    const auto found = streams_.find(number);
    if (found == streams_.end()) continue;  // reset meanwhile
    Stream& stream = found->second;
    return Call{number, std::move(stream.path), stream.timeout_us, std::exchange(stream.message, {})};
  }
  return std::nullopt;
}

void Http2Host::ReadFrame(uint8_t type, uint8_t flags, uint32_t stream, std::string_view payload) {
  switch (type) {
    case kHeaders:
    case kContinuation:
      return ReadHeaders(type, flags, stream, payload, true);
    case kResetStream:
      if (stream == 0 || stream > last_stream_ || payload.size() != 4) tablebay::Refuse("RST_STREAM of a wrong form");
      return Forget(stream);
    case kSettings:
      return ReadSettings(flags, stream, payload);
    case kPing:
      if (payload.size() != 8 || stream != 0) tablebay::Refuse("a PING of a wrong form");
      if ((flags & kAck) == 0) Owe(kPing, kAck, 0, payload);
      return;
    case kWindowUpdate:
      return ReadWindowUpdate(stream, payload);
    case kPushPromise:
      tablebay::Refuse("a PUSH_PROMISE, which is the server's");
    case kGoAway:
    case kPriority:
    default:
      return;  // of no meaning here, or unknown, which is passed over
  }
}

// fits: whether the payload is there.
void Http2Host::ReadHeaders(uint8_t type, uint8_t flags, uint32_t stream, std::string_view payload, bool fits) {
  if (type == kHeaders) {
    if (stream % 2 == 0) tablebay::Refuse(Format("headers of stream %u, which no client begins", stream));
    if (fits && !TakeBlock(flags, &payload)) tablebay::Refuse("headers of a wrong form");
    block_.clear();
    block_stream_ = stream;
    block_ends_stream_ = (flags & kEndStream) != 0;
  } else if (!in_block_ || stream != block_stream_) {
    tablebay::Refuse("a CONTINUATION of nothing");
  }
  in_block_ = (flags & kEndHeaders) == 0;
  if (!fits || block_.size() + payload.size() > kBlockBytesMax) GoDeaf();
  if (!deaf_) {
    block_.append(payload);
    if (!in_block_) ReadBlock();
  } else if (!in_block_ && block_stream_ > last_stream_) {
    last_stream_ = block_stream_;
    Reset(block_stream_, kRefusedStream);
  }
}

// Headers that are too large to be read: their call is refused, and since all that follow build on them no other can
// begin on this connection. Those under way go on.
void Http2Host::GoDeaf() {
  if (deaf_) return;
  deaf_ = true;
  block_.clear();
  const bool begins = block_stream_ > last_stream_;
  last_stream_ = std::max(last_stream_, block_stream_);
  if (begins || (streams_.contains(block_stream_) && !streams_.at(block_stream_).whole)) {
    Refuse(block_stream_, kGrpcResourceExhausted,
           Format("received metadata of more than %zu bytes, wanted at most %llu", kBlockBytesMax,
                  static_cast<unsigned long long>(limits_.metadata_bytes_max)),
           block_ends_stream_);
  }
  GoAway();
}

void Http2Host::ReadBlock() {
  // Read in any case, since later blocks build on it.
  const std::vector<HeaderField> fields = hpack_.Decode(block_);
  if (block_stream_ > last_stream_) {
    last_stream_ = block_stream_;
    return Open(block_stream_, fields, block_ends_stream_);
  }
  // Behind a request's message.
  const auto found = streams_.find(block_stream_);
  if (found == streams_.end()) return;
  if (found->second.whole || !block_ends_stream_) tablebay::Refuse("headers in the middle of a request");
  EndOfStream(block_stream_);
}

void Http2Host::Open(uint32_t number, const std::vector<HeaderField>& fields, bool end_stream) {
  if (going_away_ || streams_.size() >= limits_.streams_max) {
    return Reset(number, kRefusedStream);
  }
  Stream& stream = streams_[number];
  stream.window = initial_window_;
  std::string_view method, content_type, encoding = "identity", timeout;
  uint64_t metadata_bytes = 0;
  for (const HeaderField& field : fields) {
    metadata_bytes += field.name.size() + field.value.size() + 32;
    if (field.name == ":method") method = field.value;
    if (field.name == ":path") stream.path = field.value;
    if (field.name == "content-type") content_type = field.value;
    if (field.name == "grpc-encoding") encoding = field.value;
    if (field.name == "grpc-timeout") timeout = field.value;
  }
  if (method != "POST" || !content_type.starts_with("application/grpc")) {
    std::string block;
    AppendHeader(kStatus200, {}, method != "POST" ? "405" : "415", &block);
    owed_ += HeadersFrame(kEndStream, number, block);
    if (!end_stream) Reset(number, kNoError);
    return Forget(number);
  }
  if (metadata_bytes > limits_.metadata_bytes_max) {
    return Refuse(
        number, kGrpcResourceExhausted,
        Format("received metadata of %llu bytes, wanted at most %llu", static_cast<unsigned long long>(metadata_bytes),
               static_cast<unsigned long long>(limits_.metadata_bytes_max)),
        end_stream);
  }
  if (encoding != "identity") {
    return Refuse(number, kGrpcUnimplemented,
                  "the request's encoding is '" + std::string(encoding.substr(0, 40)) + "', wanted identity",
                  end_stream);
  }
  if (!timeout.empty()) {
    const std::optional<uint64_t> found = Timeout(timeout);
    if (!found) {
      return Refuse(number, kGrpcInternal,
                    "grpc-timeout is '" + std::string(timeout.substr(0, 40)) + "', wanted digits and a unit",
                    end_stream);
    }
    stream.timeout_us = *found;
  }
  if (end_stream) EndOfStream(number);
}

void Http2Host::ReadSettings(uint8_t flags, uint32_t stream, std::string_view payload) {
  greeted_ = true;
  if (stream != 0 || payload.size() % 6 != 0) tablebay::Refuse("SETTINGS of a wrong form");
  if ((flags & kAck) != 0) return;
  for (; !payload.empty(); payload.remove_prefix(6)) {
    const auto name = static_cast<uint16_t>(Load24(payload.data()) >> 8);
    const uint32_t value = Load32(payload.data() + 2);
    if (name == kInitialWindow) {
      if (value > kWindowMax) tablebay::Refuse(Format("a window of %u bytes", value));
      for (auto& [number, open] : streams_) {
        // May become negative, and is then waited for.
        open.window += int64_t{value} - initial_window_;
        if (open.window > kWindowMax) tablebay::Refuse("a window past 2^31 - 1");
      }
      initial_window_ = value;
    } else if (name == kMaxFrame) {
      if (value < kFrameMin || value > kFrameMax) tablebay::Refuse(Format("frames of at most %u bytes", value));
      frame_max_ = value;
    }
  }
  Owe(kSettings, kAck, 0, {});
}

void Http2Host::ReadWindowUpdate(uint32_t stream, std::string_view payload) {
  if (payload.size() != 4) tablebay::Refuse("WINDOW_UPDATE of a wrong form");
  const uint32_t more = Load32(payload.data()) & kWindowMax;
  int64_t* window = &connection_window_;
  if (stream != 0) {
    const auto found = streams_.find(stream);
    if (found == streams_.end()) return;
    window = &found->second.window;
  }
  *window += more;
  if (more == 0 || *window > kWindowMax) tablebay::Refuse(Format("a window that grows by %u bytes", more));
}

}  // namespace tablebay
