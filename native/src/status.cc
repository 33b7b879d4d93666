#include "tablebay/status.h"

#include <array>
#include <cstdio>
#include <utility>

namespace tablebay {
namespace {

constexpr std::array<const char*, kStatusCodes> kNames = {
    "OK",        "CANCELLED",       "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
    "NOT_FOUND", "ALREADY_EXISTS",  "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
    "ABORTED",   "OUT_OF_RANGE",    "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
    "DATA_LOSS", "UNAUTHENTICATED",
};

// The kinds of which this library makes errors.
constexpr std::pair<std::string_view, StatusCode> kCodes[] = {
    {"BadRequest", StatusCode::kInvalidArgument},    {"BadType", StatusCode::kInvalidArgument},
    {"NonFinite", StatusCode::kInvalidArgument},     {"NotRegistered", StatusCode::kNotFound},
    {"Fenced", StatusCode::kFailedPrecondition},     {"ServerLost", StatusCode::kFailedPrecondition},
    {"WrongShard", StatusCode::kFailedPrecondition}, {"ResourceExhausted", StatusCode::kResourceExhausted},
    {"OutOfRange", StatusCode::kOutOfRange},         {"CorruptMessage", StatusCode::kDataLoss},
    {"CheckpointInvalid", StatusCode::kDataLoss},    {"CheckpointMismatch", StatusCode::kFailedPrecondition},
    {"CheckpointFailed", StatusCode::kInternal},     {"Unavailable", StatusCode::kUnavailable},
    {"Unimplemented", StatusCode::kUnimplemented},
};

}  // namespace

StatusCode CodeOf(std::string_view kind) {
  for (const auto& [known, code] : kCodes) {
    if (known == kind) return code;
  }
  return StatusCode::kInternal;
}

const char* NameOf(StatusCode code) { return kNames[static_cast<size_t>(code)]; }

std::optional<StatusCode> CodeNamed(std::string_view name) {
  for (size_t code = 0; code < kNames.size(); ++code) {
    if (kNames[code] == name) return static_cast<StatusCode>(code);
  }
  return std::nullopt;
}

std::string Format(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  va_list again;
  va_copy(again, arguments);
  const int size = std::vsnprintf(nullptr, 0, format, arguments);
  va_end(arguments);
  std::string text(size > 0 ? static_cast<size_t>(size) : 0, '\0');
  if (size > 0) std::vsnprintf(text.data(), text.size() + 1, format, again);
  va_end(again);
  return text;
}

}  // namespace tablebay
