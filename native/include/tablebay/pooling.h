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

// Writes to out[row] the sum of the gradients of the bags that the row is in, in the order of the occurrences; zeros
// where there is none. gradients: bags.count times dim. out: `rows` times dim. REQUIRES all of bags.rows below `rows`.
template <class Element>
void SumBagGradients(const Bags& bags, const Element* gradients, size_t dim, size_t rows, Element* out);

}  // namespace tablebay
