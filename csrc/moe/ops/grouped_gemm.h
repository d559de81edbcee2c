#pragma once
// Matrix products of segments: rows of activations that go to one expert × that expert's weights.

#include <cstdint>
#include <optional>
#include <vector>

#include "moe/base/parallel.h"
#include "moe/base/tensor_view.h"
#include "moe/ops/compute.h"
#include "moe/weights/packed_weight.h"

namespace moe {

/// Activation rows prepared for one kind of dot product; the memory is the caller's scratch.
struct ActivationRows {
  ActivationLayout layout;
  std::byte* data = nullptr;
  Dot dot = Dot::kF32;

  static int64_t bytes(Dot dot, int64_t rows, int64_t cols) {
    return ActivationLayout::of(dot, cols).row_bytes * rows;
  }
  ActivationRows() = default;
  ActivationRows(Dot dot_, int64_t cols, std::byte* data_)
      : layout(ActivationLayout::of(dot_, cols)), data(data_), dot(dot_) {}
  std::byte* row(int64_t i) const { return data + i * layout.row_bytes; }
};

/// One segment's product, x [count, depth] × W → out [count, N], or with `second` the gated pair
/// out = act(x W1) · (x W2). Everything it points at outlives the call.
struct Product {
  PackedMatrix first;
  const PackedMatrix* second = nullptr;  // same format and shape as `first`
  const float* first_bias = nullptr;     // [N]
  const float* second_bias = nullptr;
  ActivationSpec activation{Activation::kIdentity};  // of the pair, or of a single product
  const ActivationRows* x = nullptr;
  const int32_t* rows = nullptr;  // which activation rows; null: first_row, first_row + 1, …
  int64_t first_row = 0;
  int64_t count = 0;
  MatrixView<float> out;  // count rows; columns beyond N are left alone
  bool far = false;       // out is read again when the caches hold other things
};

/// A list of products as pieces of columns for a team. Pieces are long first, so that a thread
/// reads on where it was, and shrink towards the end. Which thread takes which changes no byte.
class ProductQueue {
 public:
  ProductQueue(const Product* products, int64_t count, int threads);
  /// How many threads the list is worth: a region costs microseconds, as much as reading some
  /// 100 KB, and milliseconds where another process holds a thread's core.
  static int threads_for(const Product* products, int64_t count);
  /// Takes and computes pieces until none is left. Called by every thread of a team.
  void work() noexcept;

 private:
  // A product's column groups [begin, end); an empty piece is of no product.
  struct Piece {
    const Product* product = nullptr;
    int64_t begin = 0, end = 0;
  };
  // What stands before a product, and what one of its column groups costs.
  struct Before {
    int64_t groups, cost, group_cost;
  };
  // The next piece, of products_[product] or a later one, which `product` is set to.
  Piece take(int64_t& product) noexcept;
  // `next` is what this thread computes after it: its weights are requested ahead.
  void run(const Piece& piece, const Piece& next) noexcept;

  const Product* products_;
  int64_t count_;
  std::vector<Before> before_;      // [count + 1], the last one behind all products
  std::optional<RunQueue> groups_;  // made once they are counted
  bool takes_ahead_ = true;
};

/// Whether outputs of this size have left the caches before they are read again (Product::far).
bool is_far(int64_t rows, int64_t stride);

/// out[r] = x[r] · W_eᵀ for rows offsets[e] … offsets[e + 1]. x is [n, cols], out [n, rows],
/// offsets [E + 1] ascending from 0 to n. Throws ValueError where they are not.
void grouped_matmul(MatrixView<const float> x, const PackedWeight& weight, const int64_t* offsets,
                    Compute compute, MatrixView<float> out);

/// out = x · Wᵀ (+ bias [rows], or null) with a weight of one expert.
struct MatrixProduct {
  const PackedWeight* weight;
  const float* bias;
  MatrixView<float> out;
};
/// Several matrices times the same rows, which are converted once, in one parallel region.
void matmul_each(MatrixView<const float> x, const std::vector<MatrixProduct>& matrices,
                 Compute compute);

}  // namespace moe
