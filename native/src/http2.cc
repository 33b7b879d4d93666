#include "tablebay/http2.h"

#include <algorithm>
#include <cstring>

#include "http2_frames.h"
#include "tablebay/status.h"

namespace tablebay {
namespace {

// Answers to PING and SETTINGS that the server does not read: it wants none.
constexpr size_t kOwedBytesMax = 256 * 1024;

// What gRPC makes of an answer that is not its own (statuscodes of HTTP).
uint32_t CodeOfHttp(uint32_t status) {
  switch (status) {
    case 400:
      return kGrpcInternal;
    case 401:
      return kGrpcUnauthenticated;
    case 403:
      return kGrpcPermissionDenied;
    case 404:
      return kGrpcUnimplemented;
    case 429:
    case 502:
    case 503:
    case 504:
      return kGrpcUnavailable;
    default:
      return kGrpcUnknown;
  }
}

uint32_t CodeOfReset(uint32_t error) {
  switch (error) {
    case kRefusedStream:
      return kGrpcUnavailable;
    case kCancel:
      return kGrpcCancelled;
    case kEnhanceYourCalm:
      return kGrpcResourceExhausted;
    case kInadequateSecurity:
      return kGrpcPermissionDenied;
    default:
      return kGrpcInternal;
  }
}

std::optional<uint32_t> Number(std::string_view text) {
  if (text.empty() || text.size() > 3) return std::nullopt;
  uint32_t value = 0;
  for (const char c : text) {
    if (c < '0' || c > '9') return std::nullopt;
    value = value * 10 + static_cast<uint32_t>(c - '0');
  }
  return value;
}

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

// gRPC escapes a message byte by byte; what is no escape stands for itself.
std::string Unescape(std::string_view text) {
  std::string plain;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size()) {
      const int high = HexDigit(text[i + 1]);
      const int low = HexDigit(text[i + 2]);
      if (high >= 0 && low >= 0) {
        plain.push_back(static_cast<char>(high << 4 | low));
        i += 2;
        continue;
      }
    }
    plain.push_back(text[i]);
  }
  return plain;
}

}  // namespace

Http2Client::Http2Client(uint64_t message_bytes_max)
    : Http2Reader("server", {}, kOwedBytesMax), message_bytes_max_(message_bytes_max) {
  owed() = kPreface;
  std::string settings;
  AppendSetting(kEnablePush, 0, &settings);
  AppendSetting(kInitialWindow, kWindowMax, &settings);
  AppendSetting(kMaxFrame, kFrameMax, &settings);
  Owe(kSettings, 0, 0, settings);
  AppendNumberFrame(kWindowUpdate, 0, kWindowMax - kWindowDefault, &owed());
}

bool Http2Client::usable() const { return !going_away_ && stream_ < kWindowMax; }

void Http2Client::Begin(const Request& request, Allocate allocate) {
  stream_ = stream_ == 0 ? 1 : stream_ + 2;
  allocate_ = std::move(allocate);
  stream_window_ = initial_window_;
  status_.reset();
  clean_ = sent_all_ = headed_ = false;
  http_status_ = 0;
  grpc_status_.reset();
  grpc_message_.clear();
  kind_.reset();
  message_ = {};

  std::string block;
  AppendIndexed(kMethodPost, &block);
  AppendIndexed(request.secure ? kSchemeHttps : kSchemeHttp, &block);
  AppendHeader(kPath, {}, request.path, &block);
  AppendHeader(kAuthority, {}, request.authority, &block);
  AppendHeader(0, "te", "trailers", &block);
  AppendHeader(kContentType, {}, "application/grpc", &block);
  AppendHeader(kUserAgent, {}, request.user_agent, &block);
  // At most eight digits.
  const uint64_t ms = std::max<uint64_t>(1, request.timeout_ms);
  const bool fits = ms < 100'000'000;
  const std::string timeout = std::to_string(fits ? ms : std::min<uint64_t>(ms / 1000, 99'999'999));
  AppendHeader(0, "grpc-timeout", timeout + (fits ? 'm' : 'S'), &block);
  Owe(kHeaders, kEndHeaders, stream_, block);
}

void Http2Client::End(CallStatus status, bool clean) {
  if (status_) return;
  status_ = std::move(status);
  clean_ = clean;
  PassOver();
}

size_t Http2Client::DataMax() const {
  const int64_t window = std::min(connection_window_, stream_window_);
  if (window <= 0 || status_) return 0;
  return std::min<size_t>(static_cast<size_t>(window), frame_max_);
}

void Http2Client::AppendDataHead(size_t bytes, bool last, std::array<char, 9>* head) {
  *head = Head(bytes, kData, last ? kEndStream : 0, stream_);
  connection_window_ -= static_cast<int64_t>(bytes);
  stream_window_ -= static_cast<int64_t>(bytes);
  sent_all_ = sent_all_ || last;
}

// -- receiving

Http2Reader::Incoming* Http2Client::BeginData(uint32_t stream) {
  if (stream != stream_ || stream == 0) Malformed(Format("DATA of stream %u, which is not open", stream));
  if (!headed_) Malformed("DATA before headers");
  if (clean()) Malformed("DATA behind the end of its stream");
  return status_ ? nullptr : &message_;
}

void Http2Client::BeginMessage(uint32_t /*stream*/, uint8_t flag, size_t size, bool /*ended*/) {
  if (flag != 0) {
    return End({kGrpcInternal, Format("the answer's message is compressed (flag %u), wanted identity", flag)});
  }
  if (size > message_bytes_max_) {
    return End({kGrpcResourceExhausted, Format("CLIENT: Received message larger than max (%zu vs. %llu)", size,
                                               static_cast<unsigned long long>(message_bytes_max_))});
  }
  message_.bytes = allocate_(size);
  message_.size = size;
}

void Http2Client::RefuseMore(uint32_t /*stream*/, bool /*ended*/) {
  End({kGrpcInternal, "the answer has more than one message"});
}

void Http2Client::BeginHeaders(uint32_t stream) {
  if (stream != stream_ || stream == 0) Malformed(Format("headers of stream %u, which is not open", stream));
  if (clean()) Malformed("headers behind the end of their stream");
}

void Http2Client::HeadersTooLarge(uint32_t /*stream*/, size_t bytes, bool /*ended*/) {
  Malformed(Format("headers of %zu bytes, which are too large: wanted at most %zu", bytes, kBlockBytesMax));
}

void Http2Client::TakeHeaders(uint32_t stream, const std::vector<HeaderField>& fields, bool ended) {
  uint32_t http_status = 0;
  for (const HeaderField& field : fields) {
    if (field.name == ":status") {
      http_status = Number(field.value).value_or(0);
    } else if (field.name == "grpc-status") {
      grpc_status_ = Number(field.value).value_or(kGrpcUnknown);
    } else if (field.name == "grpc-message") {
      grpc_message_ = Unescape(field.value);
    } else if (field.name == kErrorMetadata) {
      kind_ = field.value;
    } else if (field.name == "grpc-encoding" && field.value != "identity") {
      End({kGrpcInternal, "the answer's encoding is '" + field.value + "', wanted identity"});
    }
  }
  if (!headed_) {
    if (http_status == 0) Malformed("headers without a status");
    // An interim answer, which another follows.
    if (http_status < 200 && !ended) return;
    headed_ = true;
    http_status_ = http_status;
  } else if (!ended) {
    Malformed("headers in the middle of an answer");
  }
  if (ended) EndOfStream(stream);
}

void Http2Client::EndOfStream(uint32_t /*stream*/) {
  CallStatus said{kGrpcOk, std::move(grpc_message_), std::move(kind_)};
  if (grpc_status_) {
    said.code = *grpc_status_;
  } else if (http_status_ != 200) {
    said = {CodeOfHttp(http_status_), Format("the server answered with HTTP status %u", http_status_)};
  } else {
    said = {kGrpcUnknown, "the server's answer has no status"};
  }
  if (said.code == kGrpcOk && !message_.whole()) {
    said = {kGrpcInternal, "the server's answer ends within its message"};
  }
  // A server may answer before it has read all; then it, or this end, has to say what becomes of the rest.
  End(std::move(said), sent_all_);
}

void Http2Client::TakeReset(uint32_t stream, uint32_t error) {
  if (stream != stream_) return;
  End({CodeOfReset(error), Format("the server reset the stream with error %u", error)});
}

void Http2Client::TakeGoAway(std::string_view payload) {
  going_away_ = true;
  // A call that the server began it also ends; any other it has not seen.
  if ((Load32(payload.data()) & kWindowMax) < stream_) {
    const std::string_view why = payload.substr(8, 256);
    End({kGrpcUnavailable,
         Format("the server takes no more calls on this connection (error %u%s%.*s)", Load32(payload.data() + 4),
                why.empty() ? "" : ": ", static_cast<int>(why.size()), why.data())});
  }
}

void Http2Client::MoveWindows(int64_t bytes) {
  if (status_) return;
  stream_window_ += bytes;
  if (stream_window_ > kWindowMax) Malformed("a window past 2^31 - 1");
}

int64_t* Http2Client::WindowOf(uint32_t stream) { return stream == stream_ && !status_ ? &stream_window_ : nullptr; }

}  // namespace tablebay
