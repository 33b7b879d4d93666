#include "tablebay/narrow.h"

#include <cstring>

#include "tablebay/hash.h"

namespace tablebay {
namespace {

template <class T>
T Load(const char* at, uint32_t place) {
  T value;
  std::memcpy(&value, at + uint64_t{place} * sizeof value, sizeof value);
  return value;
}
template <class T>
void Put(char* at, uint32_t place, T value) {
  std::memcpy(at + uint64_t{place} * sizeof value, &value, sizeof value);
}

constexpr uint32_t kInfinity = 0x7f800000u;  // of float32, and its exponent

// What is added below the bits that stay, before the rest is cut off.
struct Nearest {
  uint64_t operator()(uint64_t kept_odd, uint32_t dropped_bits) const {
    return (uint64_t{1} << (dropped_bits - 1)) - 1 + kept_odd;
  }
};
struct Chance {
  uint64_t bits;
  uint64_t operator()(uint64_t, uint32_t dropped_bits) const { return bits & ((uint64_t{1} << dropped_bits) - 1); }
};

template <class Round>
uint16_t ToBfloat16(uint32_t bits, Round round) {
  const uint32_t size = bits & 0x7fffffffu;
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  if (size >= kInfinity) return static_cast<uint16_t>(sign | size >> 16 | (size > kInfinity ? 0x40u : 0u));
  const auto rounded = static_cast<uint32_t>((size + round(size >> 16 & 1, 16)) >> 16);
  return static_cast<uint16_t>(sign | (rounded > 0x7f7fu ? 0x7f7fu : rounded));
}

template <class Round>
uint16_t ToFloat16(uint32_t bits, Round round) {
  const uint32_t size = bits & 0x7fffffffu;
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  if (size >= kInfinity) return static_cast<uint16_t>(sign | 0x7c00u | (size > kInfinity ? 0x200u : 0u));
  constexpr uint32_t kBias = 112u << 23;  // the difference of the exponents
  uint64_t rounded;
  if (size >= kBias + (1u << 23)) {
    const uint64_t rebased = size - kBias;
    rounded = (rebased + round(rebased >> 13 & 1, 13)) >> 13;
  } else {
    // No normal number of float16: a multiple of 2^-24.
    const uint32_t exponent = size >> 23;
    const uint32_t shift = 126 - exponent;
    constexpr uint32_t kShiftMax = 40;  // what is smaller has less than one chance in 65,536 anyhow
    if (exponent == 0 || shift > kShiftMax) return sign;
    const uint64_t mantissa = (size & 0x7fffffu) | 0x800000u;
    rounded = (mantissa + round(mantissa >> shift & 1, shift)) >> shift;
  }
  return static_cast<uint16_t>(sign | (rounded > 0x7bffu ? 0x7bffu : rounded));
}

uint32_t FromFloat16(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000u} << 16;
  const uint32_t exponent = half >> 10 & 31u;
  uint32_t mantissa = half & 0x3ffu;
  if (exponent == 31) return sign | kInfinity | mantissa << 13;
  if (exponent != 0) return sign | (exponent + 112) << 23 | mantissa << 13;
  if (mantissa == 0) return sign;
  uint32_t up = 0;
  for (; (mantissa & 0x400u) == 0; mantissa <<= 1) ++up;
  return sign | (113 - up) << 23 | (mantissa & 0x3ffu) << 13;
}

template <class RoundAt>
void Narrow(ElementType type, const char* floats, uint32_t count, char* narrow, RoundAt&& round_at) {
  for (uint32_t i = 0; i < count; ++i) {
    const auto bits = Load<uint32_t>(floats, i);
    Put(narrow, i, type == ElementType::kBfloat16 ? ToBfloat16(bits, round_at(i)) : ToFloat16(bits, round_at(i)));
  }
}

}  // namespace

void Widen(ElementType type, const char* narrow, uint32_t count, char* floats) {
  for (uint32_t i = 0; i < count; ++i) {
    const auto bits = Load<uint16_t>(narrow, i);
    Put(floats, i, type == ElementType::kBfloat16 ? uint32_t{bits} << 16 : FromFloat16(bits));
  }
}

void NarrowToNearest(ElementType type, const char* floats, uint32_t count, char* narrow) {
  Narrow(type, floats, count, narrow, [](uint32_t) { return Nearest{}; });
}

void NarrowByChance(ElementType type, const char* floats, uint32_t count, uint64_t base, char* narrow) {
  Narrow(type, floats, count, narrow,
         [&](uint32_t place) { return Chance{HashKey(base + (uint64_t{place} + 1) * 0x9e3779b97f4a7c15ULL)}; });
}

}  // namespace tablebay
