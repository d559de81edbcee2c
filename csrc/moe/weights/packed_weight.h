#pragma once
// Weights as the kernels read them: E matrices of [rows, cols], each in panels of sixteen rows
// (quant/format.h), each in its own format if need be, all in one allocation on huge pages.

#include <cstdint>
#include <vector>

#include "moe/base/buffer.h"
#include "moe/base/dtype.h"
#include "moe/quant/format.h"

namespace moe {

/// One expert's matrix. Panel p holds rows 16p … 16p + 15; rows and columns beyond the matrix are
/// 0.
struct PackedMatrix {
  Format format;
  const std::byte* data;
  int64_t rows;
  int64_t cols;
  int64_t panel_bytes;

  int64_t panels() const { return (rows + kPanelRows - 1) / kPanelRows; }
  const std::byte* panel(int64_t p) const { return data + p * panel_bytes; }
};

class PackedWeight {
 public:
  /// `formats` has one entry for all experts or one for each. Memory is allocated, not filled.
  /// Throws ValueError for sizes that are not positive or overflow, std::bad_alloc.
  PackedWeight(std::vector<Format> formats, int64_t experts, int64_t rows, int64_t cols);

  /// Weights for measurements, made as fast as memory is written: every panel repeats one of
  /// `pattern` [1, 16·n, cols], and only `resident` experts have memory of their own; expert e
  /// reads that of e mod resident, so that sizes beyond the memory keep their counts of rows and
  /// bytes.
  static PackedWeight repeating(const PackedWeight& pattern, int64_t experts, int64_t rows,
                                int64_t resident);

  /// Packs expert `expert` from rows × cols contiguous values. Threads share the panels.
  void fill(int64_t expert, const void* values, DType dtype);
  /// Packs expert `expert` from the bytes of a GGUF tensor: rows × (blocks · file_bytes), lossless.
  /// Throws ValueError where GGUF has no such format or cols is no multiple of its block.
  void fill_blocks(int64_t expert, const std::byte* rows);
  /// Rows × cols floats: what the packed bytes mean.
  void unpack(int64_t expert, float* out) const;

  PackedMatrix matrix(int64_t expert) const {
    return {format(expert), buffer_.data() + offsets_[expert], rows_, cols_,
            format_info(format(expert)).panel_bytes(cols_)};
  }
  Format format(int64_t expert) const {
    return formats_.size() == 1 ? formats_[0] : formats_[expert];
  }
  const std::vector<Format>& formats() const { return formats_; }
  int64_t experts() const { return experts_; }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  /// Bytes that are read when every expert is used once.
  int64_t nbytes() const { return offsets_.back(); }

 private:
  std::vector<Format> formats_;
  int64_t experts_, rows_, cols_;
  std::vector<int64_t> offsets_;  // [experts + 1] bytes: where each starts, and their sum
  Buffer buffer_;
};

}  // namespace moe
