#include "tablebay/schedule.h"

#include <cmath>

namespace tablebay {
namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr double kLn2 = 0.693147180559945309417;

// For x from 0 to pi: -sin(x - pi / 2), by sine's series.
double Cosine(double x) {
  const double t = x - kPi / 2;
  double term = t;
  double sum = t;
  for (int i = 1; i <= 12; ++i) {
    term = term * -(t * t) / ((2.0 * i) * (2.0 * i + 1));
    sum += term;
  }
  return -sum;
}

// For x above 0: of its mantissa by the series of atanh.
double Logarithm(double x) {
  int exponent;
  const double mantissa = std::frexp(x, &exponent);
  const double t = (mantissa - 1) / (mantissa + 1);  // from -1/3 to 0
  double power = t;
  double sum = t;
  for (int i = 3; i <= 41; i += 2) {
    power = power * (t * t);
    sum += power / i;
  }
  return 2 * sum + exponent * kLn2;
}

// For x up to 0.
double Exponential(double x) {
  const double whole = std::floor(x / kLn2);
  const double rest = x - whole * kLn2;
  double term = 1;
  double sum = 1;
  for (int i = 1; i <= 20; ++i) {
    term = term * rest / i;
    sum += term;
  }
  return std::ldexp(sum, static_cast<int>(whole));
}

}  // namespace

double Power(double base, uint64_t exponent) {
  double result = 1.0;
  for (; exponent != 0; exponent >>= 1, base *= base) {
    if ((exponent & 1) != 0) result *= base;
  }
  return result;
}

double FactorAt(const Schedule& schedule, uint64_t step) {
  const auto now = static_cast<double>(step);
  if (now < schedule.warmup_steps) return (now + 1) / schedule.warmup_steps;
  if (schedule.shape == ScheduleShape::kConstant) return 1;
  const double way = (now - schedule.warmup_steps) / schedule.steps;  // 1: at its end
  const double whole = std::floor(way);
  switch (schedule.shape) {
    case ScheduleShape::kLinear:
      return way >= 1 ? schedule.to : 1 + (schedule.to - 1) * way;
    case ScheduleShape::kCosine:
      return way >= 1 ? schedule.to : schedule.to + (1 - schedule.to) * 0.5 * (1 + Cosine(kPi * way));
    case ScheduleShape::kExponential:
      return Power(schedule.to, static_cast<uint64_t>(whole)) * Exponential((way - whole) * Logarithm(schedule.to));
    default:
      return Power(schedule.to, static_cast<uint64_t>(whole));
  }
}

}  // namespace tablebay
