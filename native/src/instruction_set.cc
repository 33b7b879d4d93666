#include <atomic>
#include <cstdlib>

#include "tablebay/kernels.h"
#include "tablebay/status.h"

namespace tablebay {

extern const Kernels kKernels_baseline;
#if defined(__x86_64__)
extern const Kernels kKernels_avx2;
extern const Kernels kKernels_avx512;
#endif

namespace {

// Those this CPU can run, best last.
std::vector<const Kernels*> Usable() {
  std::vector<const Kernels*> usable = {&kKernels_baseline};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) usable.push_back(&kKernels_avx2);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq")) {
    usable.push_back(&kKernels_avx512);
  }
#endif
  return usable;
}

const Kernels* Named(const std::string& name) {
  std::string names;
  for (const Kernels* kernels : Usable()) {
    if (kernels->name == name) return kernels;
    names += names.empty() ? kernels->name : std::string(", ") + kernels->name;
  }
  throw StatusError("BadRequest", Format("instruction set '%s' cannot be used on this CPU; wanted one of %s",
                                         name.c_str(), names.c_str()));
}

std::atomic<const Kernels*>& Active() {
  static std::atomic<const Kernels*> active = [] {
    const char* wanted = std::getenv("TABLEBAY_INSTRUCTION_SET");
    return wanted == nullptr || *wanted == '\0' ? Usable().back() : Named(wanted);
  }();
  return active;
}

}  // namespace

const Kernels& ActiveKernels() { return *Active().load(std::memory_order_relaxed); }

std::vector<std::string> InstructionSets() {
  std::vector<std::string> names;
  for (const Kernels* kernels : Usable()) names.emplace_back(kernels->name);
  return names;
}

void UseInstructionSet(const std::string& name) { Active().store(Named(name), std::memory_order_relaxed); }

}  // namespace tablebay
