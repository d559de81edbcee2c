#pragma once
// NumPy arrays [tokens, heads, dim] as attention reads them.

#include <optional>

#include "array.h"
#include "moe/ops/attention.h"
#include "moe/ops/kv_cache.h"

namespace moe::bindings {

/// [tokens, heads, dim] in place: any strides but the last.
inline HeadsView heads_of(const py::array& array, const char* op, const char* argument,
                          bool in_8_bits = false) {
  if (array.ndim() != 3) {
    throw ValueError(message("[", op, "] ", argument, " has shape ", shape_text(array),
                             "; 3 dimensions are required"));
  }
  HeadsView view;
  view.data = array.data();
  if (!in_8_bits) {
    view.dtype = dtype_of(array, op, argument);
  } else if (!py::isinstance<py::array_t<int8_t>>(array)) {
    throw TypeError(message("[", op, "] ", argument, " has scales and is not int8"));
  }
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

/// Scales float32 [tokens, heads] of int8 rows, those of a head contiguous.
inline void add_scales(HeadsView& view, const py::array& scales, const char* op,
                       const char* argument) {
  if (!py::isinstance<py::array_t<float>>(scales) || scales.ndim() != 2 ||
      scales.shape(0) != view.tokens || scales.shape(1) != view.heads ||
      (scales.shape(0) > 1 && scales.strides(0) != 4) || scales.strides(1) % 4 != 0) {
    throw TypeError(message("[", op, "] ", argument, "'s scales are ", shape_text(scales),
                            "; float32 [", view.tokens, ", ", view.heads,
                            "], contiguous by head, are required"));
  }
  view.scales = static_cast<const float*>(scales.data());
  view.scale_head_stride = scales.strides(1) / 4;
}

/// Rows [tokens, heads, dim] that are written to, int8 ones with their scales.
inline CacheRows cache_rows_of(py::array& kept, std::optional<py::array>& scales, const char* op,
                               const char* argument) {
  CacheRows to;
  to.rows = heads_of(kept, op, argument, scales.has_value());
  MOE_CHECK(kept.writeable() && (!scales || scales->writeable()), "[", op, "] ", argument,
            " is read-only");
  if (scales) {
    add_scales(to.rows, *scales, op, argument);
    to.scales = static_cast<float*>(scales->mutable_data());
    to.scale_token_stride = 1;
    to.scale_head_stride = to.rows.scale_head_stride;
  }
  return to;
}

inline HeadsView float_heads_of(const py::array& array, const char* op, const char* argument) {
  const HeadsView view = heads_of(array, op, argument);
  if (view.dtype != DType::kF32) {
    throw TypeError(message("[", op, "] ", argument, " has another dtype than float32"));
  }
  return view;
}

}  // namespace moe::bindings
