// The one way this library says no. `kind` is the name of an error class of client/errors.py, so that an error
// keeps its meaning over the wire; `what()` names the thing, the value found and the value wanted.
#pragma once

#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>

namespace tablebay {

class StatusError : public std::runtime_error {
 public:
  StatusError(const char* kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  const char* kind() const { return kind_; }

 private:
  const char* kind_;  // a string literal
};

// As gRPC numbers them.
enum class StatusCode : uint8_t {
  kOk = 0,
  kInvalidArgument = 3,
  kNotFound = 5,
  kResourceExhausted = 8,
  kFailedPrecondition = 9,
  kOutOfRange = 11,
  kUnimplemented = 12,
  kInternal = 13,
  kUnavailable = 14,
  kDataLoss = 15,
};
constexpr size_t kStatusCodes = 17;

// What an error of this library becomes on the wire; client/errors.py says the same.
StatusCode CodeOf(std::string_view kind);
// "NOT_FOUND" and so on; any of the 17.
const char* NameOf(StatusCode code);
std::optional<StatusCode> CodeNamed(std::string_view name);

// printf into a std::string.
[[gnu::format(printf, 1, 2)]] std::string Format(const char* format, ...);

}  // namespace tablebay
