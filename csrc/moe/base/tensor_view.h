#pragma once
// A matrix somebody else owns.

#include <cstdint>
#include <type_traits>

namespace moe {

/// rows × cols of T, rows `stride` elements apart (stride >= cols), columns contiguous.
template <class T>
struct MatrixView {
  T* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;

  MatrixView() = default;
  MatrixView(T* data_, int64_t rows_, int64_t cols_) : MatrixView(data_, rows_, cols_, cols_) {}
  MatrixView(T* data_, int64_t rows_, int64_t cols_, int64_t stride_)
      : data(data_), rows(rows_), cols(cols_), stride(stride_) {}
  template <class U>
    requires std::is_convertible_v<U*, T*>
  MatrixView(MatrixView<U> other)  // NOLINT: a mutable view serves where a const one is asked for
      : MatrixView(other.data, other.rows, other.cols, other.stride) {}

  T* row(int64_t i) const { return data + i * stride; }
};

}  // namespace moe
