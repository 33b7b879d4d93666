// Frames of HTTP/2 (RFC 7540) as both ends write and read them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace tablebay {

constexpr std::string_view kPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
constexpr size_t kHeadBytes = 9;
constexpr size_t kBlockBytesMax = 64 * 1024;  // of headers

enum FrameType : uint8_t {
  kData = 0,
  kHeaders = 1,
  kPriority = 2,
  kResetStream = 3,
  kSettings = 4,
  kPushPromise = 5,
  kPing = 6,
  kGoAway = 7,
  kWindowUpdate = 8,
  kContinuation = 9,
};

// Flags.
constexpr uint8_t kEndStream = 1;
constexpr uint8_t kAck = 1;
constexpr uint8_t kEndHeaders = 4;
constexpr uint8_t kPadded = 8;
constexpr uint8_t kHasPriority = 0x20;

// Settings.
constexpr uint16_t kEnablePush = 2;
constexpr uint16_t kMaxStreams = 3;
constexpr uint16_t kInitialWindow = 4;
constexpr uint16_t kMaxFrame = 5;
constexpr uint16_t kMaxHeaderList = 6;

constexpr uint32_t kWindowMax = 0x7fffffff;
constexpr uint32_t kWindowDefault = 65535;
constexpr uint32_t kFrameMax = 0xffffff;
constexpr uint32_t kFrameMin = 16384;

// Error codes that gRPC tells apart, or that we say.
constexpr uint32_t kNoError = 0;
constexpr uint32_t kProtocolError = 1;
constexpr uint32_t kRefusedStream = 7;
constexpr uint32_t kCancel = 8;
constexpr uint32_t kEnhanceYourCalm = 11;
constexpr uint32_t kInadequateSecurity = 12;

// Positions in the static table of HPACK.
constexpr uint32_t kAuthority = 1;
constexpr uint32_t kMethodPost = 3;
constexpr uint32_t kPath = 4;
constexpr uint32_t kSchemeHttp = 6;
constexpr uint32_t kSchemeHttps = 7;
constexpr uint32_t kStatus200 = 8;  // its name is that of any status

constexpr uint32_t kContentType = 31;
constexpr uint32_t kUserAgent = 58;

struct FrameHead {
  uint8_t type;
  uint8_t flags;
  uint32_t stream;
};

inline uint32_t Load24(const char* at) {
  const auto* b = reinterpret_cast<const uint8_t*>(at);
  return uint32_t{b[0]} << 16 | uint32_t{b[1]} << 8 | b[2];
}

inline uint32_t Load32(const char* at) {
  return static_cast<uint32_t>(static_cast<uint8_t>(at[0])) << 24 | Load24(at + 1);
}

inline void Store32(uint32_t value, char* at) {
  for (int i = 0; i < 4; ++i) at[i] = static_cast<char>(value >> (24 - 8 * i));
}

inline FrameHead ReadHead(const char* at) {
  return {static_cast<uint8_t>(at[3]), static_cast<uint8_t>(at[4]), Load32(at + 5) & kWindowMax};
}

inline std::array<char, kHeadBytes> Head(size_t bytes, uint8_t type, uint8_t flags, uint32_t stream) {
  std::array<char, kHeadBytes> head;
  head[0] = static_cast<char>(bytes >> 16);
  head[1] = static_cast<char>(bytes >> 8);
  head[2] = static_cast<char>(bytes);
  head[3] = static_cast<char>(type);
  head[4] = static_cast<char>(flags);
  Store32(stream, head.data() + 5);
  return head;
}

inline void AppendFrame(uint8_t type, uint8_t flags, uint32_t stream, std::string_view payload, std::string* out) {
  const auto head = Head(payload.size(), type, flags, stream);
  out->append(head.data(), head.size());
  out->append(payload);
}

inline void AppendNumberFrame(uint8_t type, uint32_t stream, uint32_t number, std::string* out) {
  char bytes[4];
  Store32(number, bytes);
  AppendFrame(type, 0, stream, {bytes, sizeof bytes}, out);
}

inline void AppendSetting(uint16_t name, uint32_t value, std::string* out) {
  char bytes[6] = {static_cast<char>(name >> 8), static_cast<char>(name)};
  Store32(value, bytes + 2);
  out->append(bytes, sizeof bytes);
}

// The payload of HEADERS without what comes before and behind its block; nullopt where its form is wrong.
inline bool TakeBlock(uint8_t flags, std::string_view* payload) {
  size_t padding = 0;
  if ((flags & kPadded) != 0) {
    if (payload->empty()) return false;
    padding = static_cast<uint8_t>(payload->front());
    payload->remove_prefix(1);
  }
  if ((flags & kHasPriority) != 0) {
    if (payload->size() < 5) return false;
    payload->remove_prefix(5);
  }
  if (padding > payload->size()) return false;
  payload->remove_suffix(padding);
  return true;
}

}  // namespace tablebay
