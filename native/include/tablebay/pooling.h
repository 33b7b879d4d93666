// Gradients of rows that were summed or averaged into bags.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tablebay {

struct Bags {
  const int64_t* rows;    // of each occurrence, the bags one after the other
  const int64_t* begins;  // count + 1 of them, rising
  size_t count;
  int64_t padding;  // a row whose occurrences count for nothing; -1 = none
  bool mean;        // each bag was divided by its occurrences
};

// Adds to out[row] the gradient of each bag that the row is in, in the order of the occurrences.
// gradients: count times dim. REQUIRES rows below those of `out`.
template <class Element>
void AddBagGradients(const Bags& bags, const Element* gradients, size_t dim, Element* out);

}  // namespace tablebay
