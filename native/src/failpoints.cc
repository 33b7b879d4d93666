#include "tablebay/failpoints.h"

#ifdef TABLEBAY_FAILPOINTS

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>

namespace tablebay {

void Failpoint(const char* name) {
  static const std::string armed = [] {
    const char* const value = std::getenv("TABLEBAY_FAILPOINT");
    return std::string(value == nullptr ? "" : value);
  }();
  const std::string prefix = std::string(name) + ":";
  if (armed.compare(0, prefix.size(), prefix) != 0) return;
  const std::string path = armed.substr(prefix.size());
  if (std::rename(path.c_str(), (path + ".hit").c_str()) == 0) std::raise(SIGKILL);
}

}  // namespace tablebay

#endif
