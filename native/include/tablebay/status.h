// The one way this library says no. `kind` is the name of an error class of client/errors.py, so that an error
// keeps its meaning over the wire; `what()` names the thing, the value found and the value wanted.
#pragma once

#include <cstdarg>
#include <stdexcept>
#include <string>

namespace tablebay {

class StatusError : public std::runtime_error {
 public:
  StatusError(const char* kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  const char* kind() const { return kind_; }

 private:
  const char* kind_;  // a string literal
};

// printf into a std::string.
[[gnu::format(printf, 1, 2)]] std::string Format(const char* format, ...);

}  // namespace tablebay
