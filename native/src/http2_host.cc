#include "tablebay/http2_host.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "http2_frames.h"
#include "tablebay/status.h"

namespace tablebay {
namespace {

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
    : Http2Reader("client", kPreface, SIZE_MAX),
      limits_(limits),
      allocate_(std::move(allocate)),
      give_back_(std::move(give_back)) {
  std::string settings;
  AppendSetting(kMaxStreams, limits.streams_max, &settings);
  AppendSetting(kInitialWindow, kWindowMax, &settings);
  AppendSetting(kMaxFrame, kFrameMax, &settings);
  AppendSetting(kMaxHeaderList, static_cast<uint32_t>(limits.metadata_bytes_max), &settings);
  Owe(kSettings, 0, 0, settings);
  AppendNumberFrame(kWindowUpdate, 0, kWindowMax - kWindowDefault, &owed());
}

void Http2Host::Reset(uint32_t stream, uint32_t error) { AppendNumberFrame(kResetStream, stream, error, &owed()); }

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
  if (receiving() == &found->second.incoming) PassOver();
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
  AppendFrame(kGoAway, 0, 0, {payload, sizeof payload}, &owed());
}

// The client has not said all yet, and need not.
void Http2Host::Refuse(uint32_t stream, uint32_t code, std::string message, bool ended) {
  owed() += Refusal(stream, {code, std::move(message)});
  if (!ended) Reset(stream, kNoError);
  Forget(stream);
}

// -- receiving

Http2Reader::Incoming* Http2Host::BeginData(uint32_t stream) {
  if (stream == 0 || stream > last_stream_) Malformed(Format("DATA of stream %u, which is not open", stream));
  const auto found = streams_.find(stream);
  // Of one that is over, for the client may not know that yet.
  if (found == streams_.end()) return nullptr;
  if (found->second.whole) Malformed("DATA behind the end of its stream");
  return &found->second.incoming;
}

void Http2Host::BeginMessage(uint32_t number, uint8_t flag, size_t size, bool ended) {
  if (flag != 0) {
    return Refuse(number, kGrpcUnimplemented,
                  Format("the request's message is compressed (flag %u), wanted identity", flag), ended);
  }
  if (size > limits_.message_bytes_max) {
    return Refuse(number, kGrpcResourceExhausted,
                  Format("SERVER: Received message larger than max (%zu vs. %llu)", size,
                         static_cast<unsigned long long>(limits_.message_bytes_max)),
                  ended);
  }
  Stream& stream = streams_.at(number);
  try {
    stream.message = allocate_(size);
  } catch (const std::bad_alloc&) {
    return Refuse(number, kGrpcResourceExhausted, "the server has no memory left for this request", ended);
  }
  stream.incoming.bytes = stream.message.bytes.get();
  stream.incoming.size = size;
}

void Http2Host::RefuseMore(uint32_t stream, bool ended) {
  Refuse(stream, kGrpcUnimplemented, "the request has more than one message", ended);
}

void Http2Host::EndOfStream(uint32_t number) {
  const auto found = streams_.find(number);
  if (found == streams_.end()) return;
  Stream& stream = found->second;
  if (!stream.incoming.whole()) return Refuse(number, kGrpcInternal, "the request ends within its message", true);
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

void Http2Host::BeginHeaders(uint32_t stream) {
  if (stream % 2 == 0) Malformed(Format("headers of stream %u, which no client begins", stream));
}

// The call of these headers is refused, and no other can begin on this connection. Those under way go on.
void Http2Host::HeadersTooLarge(uint32_t stream, size_t /*bytes*/, bool ended) {
  const bool begins = stream > last_stream_;
  last_stream_ = std::max(last_stream_, stream);
  if (begins || (streams_.contains(stream) && !streams_.at(stream).whole)) {
    Refuse(stream, kGrpcResourceExhausted,
           Format("received metadata of more than %zu bytes, wanted at most %llu", kBlockBytesMax,
                  static_cast<unsigned long long>(limits_.metadata_bytes_max)),
           ended);
  }
  GoAway();
}

void Http2Host::HeadersUnread(uint32_t stream) {
  if (stream <= last_stream_) return;
  last_stream_ = stream;
  Reset(stream, kRefusedStream);
}

void Http2Host::TakeHeaders(uint32_t stream, const std::vector<HeaderField>& fields, bool ended) {
  if (stream > last_stream_) {
    last_stream_ = stream;
    return Open(stream, fields, ended);
  }
  // Behind a request's message.
  const auto found = streams_.find(stream);
  if (found == streams_.end()) return;
  if (found->second.whole || !ended) Malformed("headers in the middle of a request");
  EndOfStream(stream);
}

void Http2Host::Open(uint32_t number, const std::vector<HeaderField>& fields, bool ended) {
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
    owed() += HeadersFrame(kEndStream, number, block);
    if (!ended) Reset(number, kNoError);
    return Forget(number);
  }
  if (metadata_bytes > limits_.metadata_bytes_max) {
    return Refuse(
        number, kGrpcResourceExhausted,
        Format("received metadata of %llu bytes, wanted at most %llu", static_cast<unsigned long long>(metadata_bytes),
               static_cast<unsigned long long>(limits_.metadata_bytes_max)),
        ended);
  }
  if (encoding != "identity") {
    return Refuse(number, kGrpcUnimplemented,
                  "the request's encoding is '" + std::string(encoding.substr(0, 40)) + "', wanted identity", ended);
  }
  if (!timeout.empty()) {
    const std::optional<uint64_t> found = Timeout(timeout);
    if (!found) {
      return Refuse(number, kGrpcInternal,
                    "grpc-timeout is '" + std::string(timeout.substr(0, 40)) + "', wanted digits and a unit", ended);
    }
    stream.timeout_us = *found;
  }
  if (ended) EndOfStream(number);
}

void Http2Host::TakeReset(uint32_t stream, uint32_t /*error*/) {
  if (stream > last_stream_) Malformed(Format("RST_STREAM of stream %u, which is not open", stream));
  Forget(stream);
}

void Http2Host::MoveWindows(int64_t bytes) {
  for (auto& [number, open] : streams_) {
    open.window += bytes;
    if (open.window > kWindowMax) Malformed("a window past 2^31 - 1");
  }
}

int64_t* Http2Host::WindowOf(uint32_t stream) {
  const auto found = streams_.find(stream);
  return found == streams_.end() ? nullptr : &found->second.window;
}

}  // namespace tablebay
