// Weights of two bytes: bfloat16 and float16, from and to float32.
//
// Integer arithmetic alone, so that every machine rounds alike. A finite number stays one: beyond the largest it is the
// largest. Infinities and NaN stay what they are.
#pragma once

#include <cstdint>

#include "tablebay/options.h"

namespace tablebay {

// All: REQUIRES IsNarrow(type). Numbers at any address.
void Widen(ElementType type, const char* narrow, uint32_t count, char* floats);
// Ties to even. What was widened comes back as it was.
void NarrowToNearest(ElementType type, const char* floats, uint32_t count, char* narrow);
// Up with a chance that makes the mean the number itself, by (base, place) alone. A number that is kept as it is has no
// chance to become another.
void NarrowByChance(ElementType type, const char* floats, uint32_t count, uint64_t base, char* narrow);

}  // namespace tablebay
