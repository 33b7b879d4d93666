// A learning rate by the step of a push.
#pragma once

#include <cstdint>

namespace tablebay {

enum class ScheduleShape { kConstant, kLinear, kCosine, kExponential, kStaircase };
inline constexpr int kScheduleShapes = 5;

// From one over `warmup_steps` up to the whole rate in that many steps, then down to `to` of it in `steps` steps.
struct Schedule {
  ScheduleShape shape = ScheduleShape::kConstant;
  double warmup_steps = 0;
  double steps = 0;
  double to = 0;
  bool active() const { return shape != ScheduleShape::kConstant || warmup_steps > 0; }
};

// What the learning rate is multiplied by at a step (from 0). The same bits on every machine: no libm.
double FactorAt(const Schedule& schedule, uint64_t step);

// base^exponent by squaring: the same bits everywhere, which std::pow does not promise.
double Power(double base, uint64_t exponent);

}  // namespace tablebay
