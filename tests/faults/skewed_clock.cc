// Preloaded into a process: its wall clock is off by what the file that SKEW names says, and may creep backwards.
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>

namespace {

// In a file, so that a test can change it while the process runs. read: how often the wall clock was.
struct Skew {
  std::atomic<int64_t> offset_ns;
  std::atomic<int64_t> back_each_read_ns;
  std::atomic<int64_t> read;
};

Skew* Shared() {
  static Skew* skew = [] {
    const char* path = getenv("SKEW");
    const int file = path == nullptr ? -1 : open(path, O_RDWR | O_CLOEXEC);
    if (file < 0) abort();
    void* memory = mmap(nullptr, sizeof(Skew), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (memory == MAP_FAILED) abort();
    close(file);
    return static_cast<Skew*>(memory);
  }();
  return skew;
}

int64_t Wall() {
  static const auto real = reinterpret_cast<int (*)(clockid_t, timespec*)>(dlsym(RTLD_NEXT, "clock_gettime"));
  timespec now;
  real(CLOCK_REALTIME, &now);
  Skew* skew = Shared();
  skew->read.fetch_add(1);
  const int64_t back = skew->back_each_read_ns.load();
  if (back != 0) skew->offset_ns.fetch_sub(back);
  return now.tv_sec * 1000000000ll + now.tv_nsec + skew->offset_ns.load();
}

}  // namespace

extern "C" int clock_gettime(clockid_t clock, timespec* out) {
  static const auto real = reinterpret_cast<int (*)(clockid_t, timespec*)>(dlsym(RTLD_NEXT, "clock_gettime"));
  if (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE) return real(clock, out);
  const int64_t now = Wall();
  *out = {static_cast<time_t>(now / 1000000000), static_cast<long>(now % 1000000000)};
  return 0;
}

extern "C" int gettimeofday(timeval* out, void*) noexcept {
  const int64_t now = Wall();
  *out = {static_cast<time_t>(now / 1000000000), static_cast<suseconds_t>(now % 1000000000 / 1000)};
  return 0;
}

extern "C" time_t time(time_t* out) noexcept {
  const time_t now = static_cast<time_t>(Wall() / 1000000000);
  if (out != nullptr) *out = now;
  return now;
}
