#pragma once
// NumPy arrays [tokens, heads, dim] as attention reads them.

#include "array.h"
#include "moe/ops/attention.h"

namespace moe::bindings {

/// [tokens, heads, dim] in place: any strides but the last.
inline HeadsView heads_of(const py::array& array, const char* op, const char* argument) {
  if (array.ndim() != 3) {
    throw ValueError(message("[", op, "] ", argument, " has shape ", shape_text(array),
                             "; 3 dimensions are required"));
  }
  HeadsView view;
  view.data = array.data();
  view.dtype = dtype_of(array, op, argument);
  view.tokens = array.shape(0);
  view.heads = array.shape(1);
  view.dim = array.shape(2);
  const py::ssize_t bytes = array.itemsize();
  const bool empty = array.size() == 0;
  if (!empty && (array.strides(0) % bytes != 0 || array.strides(1) % bytes != 0 ||
                 (view.dim > 1 && array.strides(2) != bytes))) {
    throw TypeError(message("[", op, "] ", argument, " does not have contiguous rows"));
  }
  view.token_stride = array.strides(0) / bytes;
  view.head_stride = array.strides(1) / bytes;
  return view;
}

inline HeadsView float_heads_of(const py::array& array, const char* op, const char* argument) {
  const HeadsView view = heads_of(array, op, argument);
  if (view.dtype != DType::kF32) {
    throw TypeError(message("[", op, "] ", argument, " has another dtype than float32"));
  }
  return view;
}

}  // namespace moe::bindings
