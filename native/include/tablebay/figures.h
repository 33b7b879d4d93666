// Requests of a server, counted and timed by method: every call writes them, whoever asks for /metrics reads them.
//
// Relaxed atomics and no lock: each figure is exact, a set of them read together may be a call apart.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>

#include "tablebay/status.h"

namespace tablebay {

class Figures {
 public:
  static constexpr uint32_t kMethods = 32;
  // Upper bounds of the buckets of a call's time, in ns; one more bucket is for what lies beyond.
  static constexpr std::array<uint64_t, 15> kBounds = {
      50'000,     100'000,    250'000,     500'000,     1'000'000,   2'500'000,     5'000'000,    10'000'000,
      25'000'000, 50'000'000, 100'000'000, 250'000'000, 500'000'000, 1'000'000'000, 2'500'000'000};

  // REQUIRES method < kMethods, here and below. Each Begin wants one End.
  void Begin(uint32_t method, uint64_t received_bytes);
  void End(uint32_t method, uint64_t nanoseconds, StatusCode code, uint64_t sent_bytes);

  struct Counted {
    uint64_t in_flight;
    std::array<uint64_t, kStatusCodes> codes;
    std::array<uint64_t, kBounds.size() + 1> buckets;
    uint64_t nanoseconds;  // of all calls together
    uint64_t received_bytes;
    uint64_t sent_bytes;
  };
  Counted Read(uint32_t method) const;
  uint64_t InFlight(uint32_t method) const { return methods_[method].in_flight.load(std::memory_order_relaxed); }

  // A call from here to the end of this object, by default one that failed.
  class Call {
   public:
    Call(Figures& figures, uint32_t method, uint64_t received_bytes);
    ~Call();
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

    void Answered(uint64_t sent_bytes);
    void Refused(StatusCode code) { code_ = code; }

   private:
    Figures& figures_;
    const uint32_t method_;
    const std::chrono::steady_clock::time_point began_ = std::chrono::steady_clock::now();
    StatusCode code_ = StatusCode::kInternal;
    uint64_t sent_bytes_ = 0;
  };

 private:
  using Count = std::atomic<uint64_t>;
  // Apart in the caches, so that pulls and pushes on two cores do not wait for each other's lines.
  struct alignas(64) OfMethod {
    Count in_flight{0};
    Count nanoseconds{0};
    Count received_bytes{0};
    Count sent_bytes{0};
    std::array<Count, kStatusCodes> codes{};
    std::array<Count, kBounds.size() + 1> buckets{};
  };
  std::array<OfMethod, kMethods> methods_;
};

}  // namespace tablebay
