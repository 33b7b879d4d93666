// Threads that help with large calls on processors that have nothing else to do.
//
// A large call is work in pieces, of which whoever is idle takes the next one: stripes of a table, each under a lock of
// its own, or ranges of rows. A caller never waits for a helper to begin.
// Threads are started when they are first wanted, and stay. In a child of fork, which has none of them, callers work
// alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

namespace tablebay {

// How many whole processors' time a control group's folder allows, of either version; at least 1, and UINT32_MAX where
// it sets no limit.
uint32_t ProcessorsOfQuota(const std::string& folder);

// Thread-safe.
class Crew {
 public:
  // Called with each number once, from several threads.
  using Work = std::function<void(uint32_t)>;
  using WorkOnRange = std::function<void(size_t begin, size_t end)>;

  // Fewer keys take no longer than a thread takes to wake.
  static constexpr size_t kKeysLarge = 8192;

  // The one that everything in this process shares.
  static Crew& OfProcess();
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;

  // From now on so many processors, whatever else runs on them; 0, as it begins: those that this process may use and
  // that were idle of late.
  void Use(uint32_t processors);

  // How many may come to a job that begins now.
  uint32_t helpers() const;
  // The jobs to which a helper came.
  uint64_t jobs_helped() const;

  // Does the work of numbers 0 to count - 1, with helpers where `large`; each thread takes them in ascending order.
  // How many helpers came. Throws the first of what work throws, after which none is begun.
  uint32_t Share(uint32_t count, bool large, const Work& work);
  // The same with ranges of `count` keys or rows: large where they are as many.
  struct Ranges {
    size_t count;
    size_t each;  // a multiple of 1,024; the last may have fewer
  };
  static Ranges RangesOf(size_t count);
  void ShareRanges(size_t count, const WorkOnRange& work);

 private:
  struct Job;
  struct State;
  Crew();
  static void Do(Job& job);
  [[noreturn]] static void Help(State* state);
  bool Open(Job& job);
  void Close(Job& job);

  State* const state_;
};

}  // namespace tablebay
