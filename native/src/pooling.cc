#include "tablebay/pooling.h"

#include <algorithm>
#include <vector>

namespace tablebay {
namespace {

int64_t Counted(const Bags& bags, size_t bag) {
  const int64_t* const begin = bags.rows + bags.begins[bag];
  const int64_t* const end = bags.rows + bags.begins[bag + 1];
  return end - begin - (bags.padding < 0 ? 0 : std::count(begin, end, bags.padding));
}

}  // namespace

template <class Element>
void AddBagGradients(const Bags& bags, const Element* gradients, size_t dim, Element* out) {
  std::vector<Element> share(dim);
  for (size_t bag = 0; bag < bags.count; ++bag) {
    const Element* gradient = gradients + bag * dim;
    if (bags.mean) {
      const auto divisor = static_cast<Element>(std::max<int64_t>(Counted(bags, bag), 1));
      for (size_t d = 0; d < dim; ++d) share[d] = gradient[d] / divisor;
      gradient = share.data();
    }
    for (int64_t i = bags.begins[bag]; i < bags.begins[bag + 1]; ++i) {
      if (bags.rows[i] == bags.padding) continue;
      Element* const to = out + static_cast<size_t>(bags.rows[i]) * dim;
      for (size_t d = 0; d < dim; ++d) to[d] += gradient[d];
    }
  }
}

template void AddBagGradients(const Bags&, const float*, size_t, float*);
template void AddBagGradients(const Bags&, const double*, size_t, double*);

}  // namespace tablebay
