// Gradients of pooled rows, as Python sees them.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "tablebay/pooling.h"
#include "tablebay/status.h"

namespace py = pybind11;

namespace tablebay {
namespace {

template <class T>
using Dense = py::array_t<T, py::array::c_style>;

template <class Element>
void Sum(const Dense<int64_t>& rows, const Dense<int64_t>& begins, const Dense<Element>& gradients, Dense<Element>& out,
         bool mean, int64_t padding) {
  if (rows.ndim() != 1 || begins.ndim() != 1 || gradients.ndim() != 2 || out.ndim() != 2) {
    throw StatusError("BadRequest", "wanted rows (m,), begins (bags + 1,), gradients (bags, dim) and out (n, dim)");
  }
  if (begins.size() != gradients.shape(0) + 1 || gradients.shape(1) != out.shape(1)) {
    throw StatusError("BadRequest",
                      Format("gradients are (%zd, %zd), with %zd begins and out (%zd, %zd)", gradients.shape(0),
                             gradients.shape(1), begins.size(), out.shape(0), out.shape(1)));
  }
  const int64_t* const begin = begins.data();
  const auto bags = static_cast<size_t>(gradients.shape(0));
  int64_t before = 0;
  for (size_t bag = 0; bag <= bags; ++bag) {
    if (begin[bag] < before || begin[bag] > rows.size()) {
      throw StatusError("BadRequest",
                        Format("bag %zu begins at %lld, wanted %lld to %zd", bag, static_cast<long long>(begin[bag]),
                               static_cast<long long>(before), rows.size()));
    }
    before = begin[bag];
  }
  const int64_t* const row = rows.data();
  for (py::ssize_t i = 0; i < rows.size(); ++i) {
    if (row[i] < 0 || row[i] >= out.shape(0)) {
      throw StatusError("BadRequest", Format("row %zd is %lld, wanted 0 to %zd", i, static_cast<long long>(row[i]),
                                             out.shape(0) - 1));
    }
  }
  Element* const to = out.mutable_data();  // throws where it is read-only
  const Element* const from = gradients.data();
  const auto dim = static_cast<size_t>(out.shape(1));
  const auto rows_out = static_cast<size_t>(out.shape(0));
  const py::gil_scoped_release release;
  SumBagGradients<Element>({row, begin, bags, padding, mean}, from, dim, rows_out, to);
}

template <class Element>
void Bind(py::module_& m) {
  m.def("sum_bag_gradients", &Sum<Element>, py::arg("rows").noconvert(), py::arg("begins").noconvert(),
        py::arg("gradients").noconvert(), py::arg("out").noconvert(), py::arg("mean"), py::arg("padding") = -1,
        "Writes to out, (n, dim), for each row the sum of the gradients, (bags, dim), of the bags that it is in, in "
        "order. The rows of bag b are rows[begins[b]:begins[b + 1]]; `mean`: divided by how many they are; "
        "`padding`: a row that does not count.");
}

}  // namespace

void BindPooling(py::module_& m) {
  Bind<float>(m);
  Bind<double>(m);
}

}  // namespace tablebay
