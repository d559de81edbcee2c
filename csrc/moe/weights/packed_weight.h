#pragma once
// Weights as the kernels read them: E matrices of [rows, cols], each in panels of sixteen rows
// (quant/format.h), each in its own format if need be, all in one allocation on huge pages unless
// they are gathered from other weights.

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "moe/base/buffer.h"
#include "moe/base/dtype.h"
#include "moe/quant/format.h"

namespace moe {

/// One expert's matrix. Panel p holds rows 16p … 16p + 15; rows beyond the matrix are 0, columns
/// are 0 or meet activations that are.
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

  /// One expert of a weight.
  struct Member {
    const PackedWeight* weight;
    int64_t expert;
  };
  /// Experts of other weights as one weight that shares their memory; the same one may stand in
  /// several places. It cannot be filled, and it sees what is filled into the others. Throws
  /// ValueError where shapes differ or an expert does not exist.
  static PackedWeight gather(const std::vector<Member>& members);

  /// A run of rows of a matrix.
  struct Rows {
    int64_t first, count;
  };
  Rows all_rows() const { return {0, rows_}; }
  /// Packs rows of expert `expert` from count × cols contiguous values, so that a large matrix need
  /// not be in memory as a whole. Threads share the panels. A run begins and ends with whole panels
  /// and whole blocks of rows that share a scale (row_step), or ends with the matrix. Throws
  /// ValueError for another one, and for NaN and Inf where the format has no such numbers.
  void fill(int64_t expert, Rows rows, const void* values, DType dtype);
  void fill(int64_t expert, const void* values, DType dtype) {
    fill(expert, all_rows(), values, dtype);
  }
  /// Packs rows of expert `expert` from the bytes of a GGUF tensor: count × (blocks · file_bytes),
  /// lossless. Throws ValueError where GGUF has no such format, cols is no multiple of its block,
  /// or for a run of rows as above.
  void fill_blocks(int64_t expert, Rows rows, const std::byte* blocks);
  /// Rows that a run begins at a multiple of. Throws ValueError if there is no such expert.
  int64_t row_step(int64_t expert) const;
  /// Throws ValueError unless there is such an expert.
  void check_expert(int64_t expert, const char* op) const;
  /// Packs expert `expert` by GPTQ (quant/gptq.h) from rows × cols floats. Throws ValueError for a
  /// format that cannot be rounded value by value, or `refit` where it does not apply.
  void fill_gptq(int64_t expert, const float* values, const float* factor, const int32_t* order,
                 bool refit);
  /// Takes over panels that `bytes` of the same format and shape gave, from byte `begin` of the
  /// expert's on; throws ValueError where they reach beyond its end.
  void fill_bytes(int64_t expert, int64_t begin, std::span<const std::byte> bytes);
  /// The panels of an expert. They are the same on every machine.
  std::span<const std::byte> bytes(int64_t expert) const;
  /// Rows × cols floats: what the packed bytes mean.
  void unpack(int64_t expert, float* out) const;

  PackedMatrix matrix(int64_t expert) const {
    return {format(expert), places_[expert], rows_, cols_,
            format_info(format(expert)).panel_bytes(cols_)};
  }
  Format format(int64_t expert) const {
    return formats_.size() == 1 ? formats_[0] : formats_[expert];
  }
  const std::vector<Format>& formats() const { return formats_; }
  int64_t experts() const { return experts_; }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  /// Bytes of memory behind the experts; what several share counts once.
  int64_t nbytes() const { return nbytes_; }

 private:
  PackedWeight(std::vector<Format> formats, int64_t rows, int64_t cols)
      : formats_(std::move(formats)), rows_(rows), cols_(cols) {}
  /// Where expert `expert` is written; throws ValueError if there is none or it is shared.
  std::byte* place_to_fill(int64_t expert, const char* op);
  /// The rows to fill as a matrix of their own, which begins at the memory returned.
  std::pair<std::byte*, PackedMatrix> run_to_fill(int64_t expert, Rows rows, const char* op);
  int64_t bytes_of_expert(int64_t expert) const;

  std::vector<Format> formats_;
  int64_t experts_ = 0, rows_, cols_, nbytes_ = 0;
  std::vector<std::byte*> places_;  // [experts]
  std::vector<std::shared_ptr<Buffer>> buffers_;
  bool shared_ = false;
};

}  // namespace moe
