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

// As the kernel add_to_each.
void AddToEach(const float* vector, const int64_t* index, size_t count, int64_t passed_over, size_t dim,
               std::vector<uint64_t>* seen, float* out) {
  ActiveKernels().add_to_each(vector, index, count, passed_over, static_cast<uint32_t>(dim), seen->data(), out);
}
void AddToEach(const double* vector, const int64_t* index, size_t count, int64_t passed_over, size_t dim,
               std::vector<uint64_t>* seen, double* out) {
  for (size_t i = 0; i < count; ++i) {
    if (index[i] == passed_over) continue;
    const auto at = static_cast<size_t>(index[i]);
    double* const to = out + at * dim;
    uint64_t& word = (*seen)[at / kWordBits];
    const uint64_t bit = uint64_t{1} << at % kWordBits;
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
    const auto count = static_cast<size_t>(bags.begins[bag + 1] - bags.begins[bag]);
    AddToEach(gradient, bags.rows + bags.begins[bag], count, bags.padding, dim, &seen, out);
  }
  for (size_t row = 0; row < rows; ++row) {
    if ((seen[row / kWordBits] >> row % kWordBits & 1) == 0) std::fill_n(out + row * dim, dim, Element{0});
  }
}

template void SumBagGradients(const Bags&, const float*, size_t, size_t, float*);
template void SumBagGradients(const Bags&, const double*, size_t, size_t, double*);

}  // namespace tablebay
