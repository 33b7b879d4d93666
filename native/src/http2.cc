#include "tablebay/http2.h"

#include <algorithm>
#include <cstring>

#include "http2_frames.h"
#include "tablebay/status.h"

namespace tablebay {
namespace {

// A frame that is no DATA has to fit in the buffer.
constexpr size_t kBufferBytes = 64 * 1024;
constexpr size_t kBlockBytesMax = 64 * 1024;
// Answers to PING and SETTINGS that the server does not read: it wants none.
constexpr size_t kOwedBytesMax = 256 * 1024;

// When half of the connection's window is used it is filled again.
constexpr uint64_t kTopUp = kWindowMax / 2;
[[noreturn]] void Refuse(const std::string& what) {
  throw StatusError("Unavailable", "the server sent what is no HTTP/2: " + what);
}

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

Http2Client::Http2Client(uint64_t message_bytes_max) : message_bytes_max_(message_bytes_max), buffer_(kBufferBytes) {
  owed_ = kPreface;
  std::string settings;
  AppendSetting(kEnablePush, 0, &settings);
  AppendSetting(kInitialWindow, kWindowMax, &settings);
  AppendSetting(kMaxFrame, kFrameMax, &settings);
  Owe(kSettings, 0, 0, settings);
  AppendNumberFrame(kWindowUpdate, 0, kWindowMax - kWindowDefault, &owed_);
}

void Http2Client::Owe(uint8_t type, uint8_t flags, uint32_t stream, std::string_view payload) {
  AppendFrame(type, flags, stream, payload, &owed_);
  if (owed_.size() > kOwedBytesMax) Refuse("it asks and takes no answers");
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
  prefix_bytes_ = 0;
  message_ = nullptr;
  message_bytes_ = message_found_ = 0;

  std::string block;
  AppendIndexed(kMethodPost, &block);
  AppendIndexed(kSchemeHttp, &block);
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

void Http2Client::Ping() { Owe(kPing, 0, 0, "tablebay"); }

// -- receiving

std::array<iovec, 2> Http2Client::Space() {
  if (begin_ == end_) {
    begin_ = end_ = 0;
  } else if (begin_ > 0) {
    // Less than a frame that is no DATA.
    std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
  }
  return {iovec{message_ + message_found_, Direct()}, iovec{buffer_.data() + end_, buffer_.size() - end_}};
}

// How many of the next bytes belong to the message.
size_t Http2Client::Direct() const {
  if (end_ > 0 || !in_data_ || message_ == nullptr || status_) return 0;
  return std::min(data_left_, message_bytes_ - message_found_);
}

void Http2Client::Took(size_t bytes) {
  const size_t direct = std::min(bytes, Direct());
  message_found_ += direct;
  data_left_ -= direct;
  end_ += bytes - direct;
  ReadBuffer();
}

void Http2Client::ReadBuffer() {
  while (true) {
    if (in_data_) {
      const size_t n = TakeData(buffer_.data() + begin_, end_ - begin_);
      begin_ += n;
      if (data_left_ > 0 || padding_left_ > 0) return;
      EndData();
      continue;
    }
    const size_t found = end_ - begin_;
    if (found < kHeadBytes) return;
    const char* const head = buffer_.data() + begin_;
    const size_t bytes = Load24(head);
    const FrameHead frame = ReadHead(head);
    if (!greeted_ && frame.type != kSettings) Refuse("its first frame is no SETTINGS; is it a gRPC server?");
    if (in_block_ && frame.type != kContinuation) Refuse("a frame between those of a header block");
    if (frame.type == kData) {
      const size_t pad_head = (frame.flags & kPadded) != 0 ? 1 : 0;
      if (bytes < pad_head) Refuse("a padded frame without its padding");
      if (found < kHeadBytes + pad_head) return;
      padding_left_ = pad_head != 0 ? static_cast<uint8_t>(head[kHeadBytes]) : 0;
      if (padding_left_ > bytes - pad_head) Refuse("a frame shorter than its padding");
      begin_ += kHeadBytes + pad_head;
      data_left_ = bytes - pad_head - padding_left_;
      BeginData(frame, bytes);
      continue;
    }
    if (bytes > kBufferBytes - kHeadBytes) Refuse(Format("a frame of type %u with %zu bytes", frame.type, bytes));
    if (found < kHeadBytes + bytes) return;
    begin_ += kHeadBytes + bytes;
    ReadFrame(frame, {head + kHeadBytes, bytes});
  }
}

void Http2Client::BeginData(const FrameHead& frame, size_t bytes) {
  if (frame.stream != stream_ || frame.stream == 0)
    Refuse(Format("DATA of stream %u, which is not open", frame.stream));
  if (!headed_) Refuse("DATA before headers");
  if (status_ && clean_) Refuse("DATA behind the end of its stream");
  in_data_ = true;
  data_ends_stream_ = (frame.flags & kEndStream) != 0;
  taken_ += bytes;
  if (taken_ >= kTopUp) {
    char more[4];
    Store32(static_cast<uint32_t>(taken_), more);
    Owe(kWindowUpdate, 0, 0, {more, sizeof more});
    taken_ = 0;
  }
}

// How many of the bytes belong to the frame.
size_t Http2Client::TakeData(const char* data, size_t bytes) {
  size_t at = 0;
  while (at < bytes && data_left_ > 0) {
    if (status_) {
      // The call is over, and what else comes of it is passed over.
      const size_t n = std::min(bytes - at, data_left_);
      at += n;
      data_left_ -= n;
    } else if (prefix_bytes_ < prefix_.size()) {
      prefix_[prefix_bytes_++] = data[at++];
      --data_left_;
      if (prefix_bytes_ < prefix_.size()) continue;
      message_bytes_ = Load32(prefix_.data() + 1);
      if (prefix_[0] != 0) {
        End({kGrpcInternal, Format("the answer's message is compressed (flag %u), wanted identity",
                                   static_cast<uint8_t>(prefix_[0]))});
      } else if (message_bytes_ > message_bytes_max_) {
        End({kGrpcResourceExhausted, Format("CLIENT: Received message larger than max (%zu vs. %llu)", message_bytes_,
                                            static_cast<unsigned long long>(message_bytes_max_))});
      } else {
        message_ = allocate_(message_bytes_);
      }
    } else {
      const size_t n = std::min({bytes - at, data_left_, message_bytes_ - message_found_});
      if (n == 0) {
        End({kGrpcInternal, "the answer has more than one message"});
        continue;
      }
      std::memcpy(message_ + message_found_, data + at, n);
      at += n;
      message_found_ += n;
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

void Http2Client::EndData() {
  in_data_ = false;
  if (data_ends_stream_) EndOfStream();
}

void Http2Client::ReadFrame(const FrameHead& frame, std::string_view payload) {
  switch (frame.type) {
    case kHeaders:
    case kContinuation:
      return ReadHeaders(frame, payload);
    case kResetStream:
      return ReadReset(frame, payload);
    case kSettings:
      return ReadSettings(frame, payload);
    case kPing:
      if (payload.size() != 8 || frame.stream != 0) Refuse("a PING of a wrong form");
      if ((frame.flags & kAck) == 0) Owe(kPing, kAck, 0, payload);
      return;
    case kGoAway:
      return ReadGoAway(frame, payload);
    case kWindowUpdate:
      return ReadWindowUpdate(frame, payload);
    case kPushPromise:
      Refuse("a PUSH_PROMISE, which was refused");
    case kPriority:
    default:
      return;  // of no meaning here, or unknown, which is passed over
  }
}

void Http2Client::ReadHeaders(const FrameHead& frame, std::string_view payload) {
  if (frame.stream != stream_ || frame.stream == 0) {
    Refuse(Format("headers of stream %u, which is not open", frame.stream));
  }
  if (frame.type == kHeaders) {
    if (status_ && clean_) Refuse("headers behind the end of their stream");
    if (!TakeBlock(frame.flags, &payload)) Refuse("headers of a wrong form");
    block_.clear();
    block_ends_stream_ = (frame.flags & kEndStream) != 0;
  } else if (!in_block_) {
    Refuse("a CONTINUATION of nothing");
  }
  if (block_.size() + payload.size() > kBlockBytesMax) Refuse("headers that are too large");
  block_.append(payload);
  in_block_ = (frame.flags & kEndHeaders) == 0;
  if (!in_block_) ReadBlock(block_ends_stream_);
}

void Http2Client::ReadBlock(bool end_stream) {
  // Read in any case, since later blocks build on it.
  const std::vector<HeaderField> fields = hpack_.Decode(block_);
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
    if (http_status == 0) Refuse("headers without a status");
    // An interim answer, which another follows.
    if (http_status < 200 && !end_stream) return;
    headed_ = true;
    http_status_ = http_status;
  } else if (!end_stream) {
    Refuse("headers in the middle of an answer");
  }
  if (end_stream) EndOfStream();
}

void Http2Client::EndOfStream() {
  CallStatus said{kGrpcOk, std::move(grpc_message_), std::move(kind_)};
  if (grpc_status_) {
    said.code = *grpc_status_;
  } else if (http_status_ != 200) {
    said = {CodeOfHttp(http_status_), Format("the server answered with HTTP status %u", http_status_)};
  } else {
    said = {kGrpcUnknown, "the server's answer has no status"};
  }
  if (said.code == kGrpcOk && (prefix_bytes_ < prefix_.size() || message_found_ < message_bytes_)) {
    said = {kGrpcInternal, "the server's answer ends within its message"};
  }
  // A server may answer before it has read all; then it, or this end, has to say what becomes of the rest.
  End(std::move(said), sent_all_);
}

void Http2Client::ReadSettings(const FrameHead& frame, std::string_view payload) {
  greeted_ = true;
  if (frame.stream != 0 || payload.size() % 6 != 0) Refuse("SETTINGS of a wrong form");
  if ((frame.flags & kAck) != 0) return;
  for (; !payload.empty(); payload.remove_prefix(6)) {
    const auto name = static_cast<uint16_t>(Load24(payload.data()) >> 8);
    const uint32_t value = Load32(payload.data() + 2);
    if (name == kInitialWindow) {
      if (value > kWindowMax) Refuse(Format("a window of %u bytes", value));
      // May become negative, and is then waited for.
      if (!status_) stream_window_ += int64_t{value} - initial_window_;
      initial_window_ = value;
      if (stream_window_ > kWindowMax) Refuse("a window past 2^31 - 1");
    } else if (name == kMaxFrame) {
      if (value < kFrameMin || value > kFrameMax) Refuse(Format("frames of at most %u bytes", value));
      frame_max_ = value;
    }
  }
  Owe(kSettings, kAck, 0, {});
}

void Http2Client::ReadReset(const FrameHead& frame, std::string_view payload) {
  if (frame.stream == 0 || payload.size() != 4) Refuse("RST_STREAM of a wrong form");
  if (frame.stream != stream_) return;
  const uint32_t error = Load32(payload.data());
  End({CodeOfReset(error), Format("the server reset the stream with error %u", error)});
}

void Http2Client::ReadGoAway(const FrameHead& frame, std::string_view payload) {
  if (frame.stream != 0 || payload.size() < 8) Refuse("GOAWAY of a wrong form");
  going_away_ = true;
  // A call that the server began it also ends; any other it has not seen.
  if ((Load32(payload.data()) & kWindowMax) < stream_) {
    const std::string_view why = payload.substr(8, 256);
    End({kGrpcUnavailable,
         Format("the server takes no more calls on this connection (error %u%s%.*s)", Load32(payload.data() + 4),
                why.empty() ? "" : ": ", static_cast<int>(why.size()), why.data())});
  }
}

void Http2Client::ReadWindowUpdate(const FrameHead& frame, std::string_view payload) {
  if (payload.size() != 4) Refuse("WINDOW_UPDATE of a wrong form");
  const uint32_t more = Load32(payload.data()) & kWindowMax;
  if (frame.stream != 0 && (frame.stream != stream_ || status_)) return;
  int64_t& window = frame.stream == 0 ? connection_window_ : stream_window_;
  window += more;
  if (more == 0 || window > kWindowMax) Refuse(Format("a window that grows by %u bytes", more));
}

}  // namespace tablebay
