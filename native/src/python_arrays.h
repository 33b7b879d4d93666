// Arrays and bytes of Python, as the bindings take and give them.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string_view>

#include "tablebay/status.h"

namespace tablebay {

template <class T>
using Array = pybind11::array_t<T, pybind11::array::c_style>;

// A contiguous buffer, held for as long as this lives.
class Buffer {
 public:
  explicit Buffer(const pybind11::handle& object, bool writable = false) {
    const int flags = writable ? PyBUF_SIMPLE | PyBUF_WRITABLE : PyBUF_SIMPLE;
    if (PyObject_GetBuffer(object.ptr(), &view_, flags) != 0) throw pybind11::error_already_set();
  }
  ~Buffer() { PyBuffer_Release(&view_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  char* data() const { return static_cast<char*>(view_.buf); }
  size_t size() const { return static_cast<size_t>(view_.len); }
  std::string_view view() const { return {data(), size()}; }

 private:
  Py_buffer view_{};
};

// An unfilled bytes object and where to fill it.
struct NewBytes {
  explicit NewBytes(size_t bytes)
      : size(bytes),
        object(pybind11::reinterpret_steal<pybind11::bytes>(
            PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(bytes)))) {
    if (!object) throw pybind11::error_already_set();
  }
  char* data() const { return PyBytes_AS_STRING(object.ptr()); }
  size_t size;
  pybind11::bytes object;
};

inline std::string_view KeyBytes(const Array<uint64_t>& keys) {
  if (keys.ndim() != 1) {
    throw StatusError("BadRequest", Format("keys have %d dimensions, wanted 1", static_cast<int>(keys.ndim())));
  }
  return {reinterpret_cast<const char*>(keys.data()), static_cast<size_t>(keys.nbytes())};
}

template <class Values>
Array<typename Values::value_type> ToArray(const Values& values) {
  return Array<typename Values::value_type>(static_cast<pybind11::ssize_t>(values.size()), values.data());
}

}  // namespace tablebay
