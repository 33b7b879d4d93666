#include "tablebay/crew.h"

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>

namespace tablebay {
namespace {

// More threads than these wait for memory rather than for a processor.
constexpr uint32_t kHelpersMax = 7;
constexpr size_t kRange = 1024;
// A call is several jobs, one soon after the other, and to go to sleep and be woken takes as long as this.
constexpr auto kAwake = std::chrono::microseconds(50);

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Until `ready()`, for a moment; whether it is.
template <class Ready>
bool Awaits(Ready&& ready) {
  const auto until = std::chrono::steady_clock::now() + kAwake;
  do {
    for (int i = 0; i < 16; ++i) {
      if (ready()) return true;
      Pause();
    }
  } while (std::chrono::steady_clock::now() < until);
  return false;
}

// Those that this process may use.
uint32_t Processors() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  return static_cast<uint32_t>(CPU_COUNT(&set));
}

std::string TextOf(const std::string& path) {
  std::string text(128, 0);
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return {};
  const ssize_t size = read(file, text.data(), text.size() - 1);
  close(file);
  text.resize(static_cast<size_t>(std::max<ssize_t>(size, 0)));
  return text;
}

// How many processors have nothing to run while nobody helps: looked at for a moment now and then, during which nobody
// does. (The kernel also tells how many threads could run just now, but a thread that was woken often waits beside the
// one that woke it while another processor is idle, and counts as one that keeps a processor busy.)
class Idle {
 public:
  uint32_t Processors() {
    const int64_t now = std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
    if (now >= until_.load(std::memory_order_relaxed)) Turn(now);
    return idle_.load(std::memory_order_relaxed);
  }

 private:
  static constexpr int64_t kLook = 100'000'000;    // ns; the kernel counts in hundredths of a second
  static constexpr int64_t kHelp = 2'000'000'000;  // ns
  // Of one processor, so much must be idle for one more helper: less is left over where as many threads run as there
  // are processors.
  static constexpr double kEnough = 0.25;

  struct Times {
    double up = 0;    // s
    double idle = 0;  // s, of all processors together
  };

  static Times Read() {
    Times times;
    const std::string text = TextOf("/proc/uptime");
    if (std::sscanf(text.c_str(), "%lf %lf", &times.up, &times.idle) != 2) times = {};
    return times;
  }

  void Turn(int64_t now) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock()) return;
    const Times times = Read();
    const double passed = times.up - began_.up;
    const double idle = looks_ && passed > 0 ? std::max(0.0, (times.idle - began_.idle) / passed) : 0;
    const auto helpers = std::min(static_cast<uint32_t>(idle + 1 - kEnough), ProcessorsOfQuota("/sys/fs/cgroup") - 1);
    looks_ = helpers == 0;
    began_ = times;
    idle_.store(helpers, std::memory_order_relaxed);
    until_.store(now + (looks_ ? kLook : kHelp), std::memory_order_relaxed);
  }

  std::atomic<int64_t> until_{0};
  std::atomic<uint32_t> idle_{0};
  std::mutex mutex_;
  bool looks_ = false;
  Times began_;
};

}  // namespace

uint32_t ProcessorsOfQuota(const std::string& folder) {
  double quota = 0;   // of processor time
  double period = 0;  // in which
  if (std::sscanf(TextOf(folder + "/cpu.max").c_str(), "%lf %lf", &quota, &period) != 2) {
    const std::string first = TextOf(folder + "/cpu/cpu.cfs_quota_us");
    const std::string second = TextOf(folder + "/cpu/cpu.cfs_period_us");
    if (std::sscanf(first.c_str(), "%lf", &quota) != 1 || std::sscanf(second.c_str(), "%lf", &period) != 1) quota = 0;
  }
  if (quota <= 0 || period <= 0) return UINT32_MAX;
  return static_cast<uint32_t>(std::clamp(quota / period, 1.0, 1e6));
}

struct Crew::Job {
  const Work& work;
  const uint32_t count;
  std::atomic<uint32_t> next{0};
  std::atomic<uint32_t> helping{0};  // raised under the crew's mutex
  // Under the crew's mutex.
  uint32_t wanted = 0;  // helpers that may still come
  uint32_t helped = 0;  // those that came
  std::exception_ptr error{};
};

struct Crew::State {
  const pid_t process = getpid();
  std::atomic<uint32_t> processors{0};
  std::atomic<uint32_t> at_work{0};  // callers, and helpers that are wanted or at work
  std::atomic<uint32_t> jobs{0};     // opened, ever
  std::atomic<uint64_t> jobs_helped{0};
  std::mutex mutex;
  std::condition_variable job_opened;
  std::condition_variable helper_left;
  std::deque<Job*> open;
  uint32_t helpers = 0;  // at work or not
};

Crew::Crew() : state_(new State) {}

Crew& Crew::OfProcess() {
  // Never destroyed: helpers may outlive what is destroyed at the process's end.
  static auto* const crew = new Crew;
  return *crew;
}

void Crew::Use(uint32_t processors) { state_->processors = processors; }

uint64_t Crew::jobs_helped() const { return state_->jobs_helped; }

void Crew::Do(Job& job) {
  for (uint32_t number; (number = job.next.fetch_add(1, std::memory_order_relaxed)) < job.count;) job.work(number);
}

void Crew::Help(State* state) {
  std::unique_lock<std::mutex> lock(state->mutex);
  while (true) {
    state->job_opened.wait(lock, [&] { return !state->open.empty(); });
    Job& job = *state->open.front();
    job.helping.fetch_add(1, std::memory_order_relaxed);
    ++job.helped;
    if (--job.wanted == 0) state->open.pop_front();
    lock.unlock();
    std::exception_ptr error;
    try {
      Do(job);
    } catch (...) {
      error = std::current_exception();
      job.next.store(job.count, std::memory_order_relaxed);
    }
    lock.lock();
    if (error != nullptr && job.error == nullptr) job.error = error;
    const uint32_t jobs = state->jobs.load(std::memory_order_relaxed);
    state->at_work.fetch_sub(1, std::memory_order_relaxed);
    // The last that is done with the job, which ends with it.
    if (job.helping.fetch_sub(1, std::memory_order_release) == 1) state->helper_left.notify_all();
    lock.unlock();
    Awaits([&] { return state->jobs.load(std::memory_order_relaxed) != jobs; });
    lock.lock();
  }
}

uint32_t Crew::helpers() const {
  State& state = *state_;
  const uint32_t at_work = state.at_work.load(std::memory_order_relaxed);
  const uint32_t given = state.processors.load(std::memory_order_relaxed);
  const uint32_t processors = given != 0 ? given : Processors();
  const uint32_t others = processors > at_work + 1 ? processors - at_work - 1 : 0;  // but the caller's
  if (given != 0 || others == 0) return others;
  static Idle idle;
  return std::min(others, idle.Processors());
}

// Has idle helpers come; whether there are any.
bool Crew::Open(Job& job) {
  State& state = *state_;
  uint32_t wanted = std::min({helpers(), kHelpersMax, job.count - 1});
  if (wanted == 0) return false;
  const std::lock_guard<std::mutex> lock(state.mutex);
  try {
    while (state.helpers < wanted) {
      std::thread(Help, state_).detach();
      ++state.helpers;
    }
  } catch (const std::system_error&) {
    // With those that there are.
  }
  wanted = std::min(wanted, state.helpers);
  if (wanted == 0) return false;
  state.open.push_back(&job);
  job.wanted = wanted;
  state.at_work.fetch_add(wanted, std::memory_order_relaxed);
  state.jobs.fetch_add(1, std::memory_order_relaxed);
  for (uint32_t i = 0; i < wanted; ++i) state.job_opened.notify_one();
  return true;
}

// No helper comes any more, and those that came have left.
void Crew::Close(Job& job) {
  State& state = *state_;
  {
    const std::lock_guard<std::mutex> lock(state.mutex);
    if (job.wanted > 0) {
      state.open.erase(std::find(state.open.begin(), state.open.end(), &job));
      state.at_work.fetch_sub(job.wanted, std::memory_order_relaxed);
    }
  }
  Awaits([&] { return job.helping.load(std::memory_order_acquire) == 0; });
  // Under the lock even so: who left last has it until it is done with the job.
  std::unique_lock<std::mutex> lock(state.mutex);
  state.helper_left.wait(lock, [&] { return job.helping.load(std::memory_order_relaxed) == 0; });
}

uint32_t Crew::Share(uint32_t count, bool large, const Work& work) {
  State& state = *state_;
  if (!large || count < 2 || state.processors == 1 || state.process != getpid()) {
    for (uint32_t number = 0; number < count; ++number) work(number);
    return 0;
  }
  Job job{.work = work, .count = count};
  std::exception_ptr error;
  const bool opened = Open(job);
  state.at_work.fetch_add(1, std::memory_order_relaxed);
  try {
    Do(job);
  } catch (...) {
    error = std::current_exception();
    job.next.store(count, std::memory_order_relaxed);
  }
  state.at_work.fetch_sub(1, std::memory_order_relaxed);
  if (opened) Close(job);
  if (error == nullptr) error = job.error;
  if (error != nullptr) std::rethrow_exception(error);
  if (job.helped > 0) state.jobs_helped.fetch_add(1, std::memory_order_relaxed);
  return job.helped;
}

Crew::Ranges Crew::RangesOf(size_t count) {
  // So many that whoever begins late finds some, and few enough that each is worth beginning.
  const size_t most = std::clamp<size_t>(count / (4 * kRange), 1, 16);
  const size_t each = std::max(kRange, ((count + most - 1) / most + kRange - 1) / kRange * kRange);
  return {(count + each - 1) / each, each};
}

void Crew::ShareRanges(size_t count, const WorkOnRange& work) {
  const Ranges ranges = RangesOf(count);
  const auto of_number = [&](uint32_t number) {
    const size_t begin = number * ranges.each;
    work(begin, std::min(count, begin + ranges.each));
  };
  Share(static_cast<uint32_t>(ranges.count), count >= kKeysLarge, std::ref(of_number));
}

}  // namespace tablebay
