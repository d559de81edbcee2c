#pragma once
// NumPy arrays at the boundary. The Python layer (moekit/ops) has already turned whatever the
// caller gave into NumPy arrays of the dtype asked for; what arrives here otherwise is a TypeError.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "moe/base/check.h"
#include "moe/base/dtype.h"
#include "moe/base/recycled.h"
#include "moe/base/tensor_view.h"

namespace moe::bindings {

namespace py = pybind11;

inline std::string shape_text(const py::array& array) {
  std::string text = "[";
  for (py::ssize_t i = 0; i < array.ndim(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(array.shape(i));
  }
  return text + "]";
}

/// The array's data if it is C-contiguous, of `T` and has `ndim` dimensions (-1: any).
template <class T>
const T* data_of(const py::array& array, int ndim, const char* op, const char* argument) {
  if (!py::isinstance<py::array_t<T>>(array)) {
    throw TypeError(message("[", op, "] ", argument, " has dtype ",
                            std::string(py::str(array.dtype())), "; ",
                            std::string(py::str(py::dtype::of<T>())), " is required"));
  }
  if (ndim >= 0 && array.ndim() != ndim) {
    throw ValueError(message("[", op, "] ", argument, " has shape ", shape_text(array), "; ", ndim,
                             " dimensions are required"));
  }
  if ((array.flags() & py::array::c_style) == 0) {
    throw TypeError(message("[", op, "] ", argument, " is not C-contiguous"));
  }
  return static_cast<const T*>(array.data());
}

template <class T>
MatrixView<const T> matrix_of(const py::array& array, const char* op, const char* argument) {
  const T* data = data_of<T>(array, 2, op, argument);
  return {data, array.shape(0), array.shape(1)};
}

using OptionalArray = std::optional<py::array>;

/// Floats [n], or null.
inline const float* vector_of(const OptionalArray& array, int64_t n, const char* op,
                              const char* name) {
  if (!array) return nullptr;
  const float* data = data_of<float>(*array, 1, op, name);
  MOE_CHECK(array->shape(0) == n, "[", op, "] ", name, " has shape ", shape_text(*array), "; [", n,
            "] is required");
  return data;
}

/// A fresh array; its memory is not initialised. A large one's is kept for the next when it dies.
template <class T>
py::array_t<T> new_array(std::vector<py::ssize_t> shape) {
  size_t bytes = sizeof(T);
  for (const py::ssize_t n : shape) bytes *= static_cast<size_t>(n);
  if (!is_recycled(bytes)) return py::array_t<T>(std::move(shape));
  auto memory = std::make_unique<Buffer>(take_recycled(bytes));
  const py::capsule owner(memory.get(), [](void* held) {
    const std::unique_ptr<Buffer> buffer(static_cast<Buffer*>(held));
    give_back(std::move(*buffer));
  });
  return py::array_t<T>(std::move(shape), memory.release()->template as<T>(), owner);
}

/// Plain float dtypes by name: ml_dtypes' types have no fixed number, and float16 and bfloat16 no
/// C++ type, so they cannot be asked for as data_of<T> does.
inline DType dtype_of(const py::array& array, const char* op, const char* argument) {
  if (py::isinstance<py::array_t<float>>(array)) return DType::kF32;
  // Asking for a name takes 3 µs. NumPy has one object for each of these types.
  static PyObject* known_bf16 = nullptr;
  static PyObject* known_f16 = nullptr;
  PyObject* own = py::detail::array_proxy(array.ptr())->descr;
  if (own == known_bf16) return DType::kBf16;
  if (own == known_f16) return DType::kF16;
  const auto name = std::string(py::str(array.dtype().attr("name")));
  if (name == "float32") return DType::kF32;
  // Kept for ever, so that no other type gets the address.
  if (name == "bfloat16") {
    if (known_bf16 == nullptr) known_bf16 = py::handle(own).inc_ref().ptr();
    return DType::kBf16;
  }
  if (name == "float16") {
    if (known_f16 == nullptr) known_f16 = py::handle(own).inc_ref().ptr();
    return DType::kF16;
  }
  throw TypeError(message("[", op, "] ", argument, " has dtype ", name,
                          "; float32, bfloat16 or float16 is required"));
}

}  // namespace moe::bindings
