#include "tablebay/pooling.h"

#include <algorithm>
#include <vector>

#include "tablebay/kernels.h"

namespace tablebay {
namespace {

constexpr size_t kWordBits = 64;

int64_t Counted(const Bags& bags, size_t bag) {
  const int64_t* const begin = bags.rows + bags.begins[bag];
  const int64_t* const end = bags.rows + bags.begins[bag + 1];
  return end - begin - (bags.padding < 0 ? 0 : std::count(begin, end, bags.padding));
}

// Adds a vector to the rows of a bag, by the kernel add_to_each or as it does.
void AddToBag(const Bags& bags, size_t bag, const float* vector, size_t dim, std::vector<uint64_t>* seen, float* out) {
  const int64_t begin = bags.begins[bag];
  const int64_t end = bags.begins[bag + 1];
  ActiveKernels().add_to_each(vector, bags.rows + begin, static_cast<size_t>(end - begin),
                              static_cast<size_t>(bags.begins[bags.count] - end), bags.padding,
                              static_cast<uint32_t>(dim), seen->data(), out);
}
void AddToBag(const Bags& bags, size_t bag, const double* vector, size_t dim, std::vector<uint64_t>* seen,
              double* out) {
  for (int64_t i = bags.begins[bag]; i < bags.begins[bag + 1]; ++i) {
    if (bags.rows[i] == bags.padding) continue;
    const auto row = static_cast<size_t>(bags.rows[i]);
    double* const to = out + row * dim;
    uint64_t& word = (*seen)[row / kWordBits];
    const uint64_t bit = uint64_t{1} << row % kWordBits;
    for (size_t d = 0; d < dim; ++d) to[d] = vector[d] + ((word & bit) != 0 ? to[d] : 0.0);
    word |= bit;
  }
}

}  // namespace

template <class Element>
void SumBagGradients(const Bags& bags, const Element* gradients, size_t dim, size_t rows, Element* out) {
  std::vector<uint64_t> seen((rows + kWordBits - 1) / kWordBits);
  std::vector<Element> share(dim);
  for (size_t bag = 0; bag < bags.count; ++bag) {
    const Element* gradient = gradients + bag * dim;
    if (bags.mean) {
      const auto divisor = static_cast<Element>(std::max<int64_t>(Counted(bags, bag), 1));
      for (size_t d = 0; d < dim; ++d) share[d] = gradient[d] / divisor;
      gradient = share.data();
    }
    AddToBag(bags, bag, gradient, dim, &seen, out);
  }
  for (size_t row = 0; row < rows; ++row) {
    if ((seen[row / kWordBits] >> row % kWordBits & 1) == 0) std::fill_n(out + row * dim, dim, Element{0});
  }
}

template void SumBagGradients(const Bags&, const float*, size_t, size_t, float*);
template void SumBagGradients(const Bags&, const double*, size_t, size_t, double*);

}  // namespace tablebay
