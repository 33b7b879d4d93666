// Which steps of one client have been applied: the highest, and a bit for each of the 64 steps up to it.
//
// A step older than that counts as applied: a client has at most 64 steps open at once (dataplane: `oldest_step`).
#pragma once

#include <cstdint>

namespace tablebay {

class StepWindow {
 public:
  static constexpr uint64_t kSteps = 64;

  bool Applied(uint64_t step) const {
    if (step >= next_) return false;
    const uint64_t back = next_ - 1 - step;
    return back >= kSteps || (bits_ >> back & 1) != 0;
  }

  // REQUIRES: !Applied(step).
  void Mark(uint64_t step) {
    if (step >= next_) {
      const uint64_t shift = step - next_ + 1;
      bits_ = shift >= kSteps ? 0 : bits_ << shift;
      // Steps before the first one ever seen are not this client's, or are still open: left unmarked.
      next_ = step + 1;
      bits_ |= 1;
    } else {
      bits_ |= uint64_t{1} << (next_ - 1 - step);
    }
  }

  // Highest applied + 1, and bit b for step next - 1 - b: what is kept of a window in a checkpoint.
  uint64_t next() const { return next_; }
  uint64_t bits() const { return bits_; }
  static StepWindow Of(uint64_t next, uint64_t bits) {
    StepWindow window;
    window.next_ = next;
    window.bits_ = bits;
    return window;
  }

  // The steps that both have.
  static StepWindow Common(const StepWindow& one, const StepWindow& other) {
    const StepWindow& low = one.next_ <= other.next_ ? one : other;
    const StepWindow& high = one.next_ <= other.next_ ? other : one;
    StepWindow common;
    common.next_ = low.next_;
    for (uint64_t back = 0; back < kSteps && back < low.next_; ++back) {
      const uint64_t step = low.next_ - 1 - back;
      if (low.Applied(step) && high.Applied(step)) common.bits_ |= uint64_t{1} << back;
    }
    return common;
  }

  // The lowest step not applied.
  uint64_t LowestOpen() const {
    const uint64_t known = next_ < kSteps ? next_ : kSteps;
    for (uint64_t back = known; back-- > 0;) {
      if ((bits_ >> back & 1) == 0) return next_ - 1 - back;
    }
    return next_;
  }

 private:
  uint64_t next_ = 0;  // highest applied + 1
  uint64_t bits_ = 0;  // bit b: step next_ - 1 - b
};

}  // namespace tablebay
