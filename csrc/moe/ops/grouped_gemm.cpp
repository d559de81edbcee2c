#include "moe/ops/grouped_gemm.h"

#include <algorithm>

#include "moe/base/check.h"

namespace moe {

namespace {

// Costs are bytes to read, or four times as many multiplications. A piece has at least this much:
// with less the threads meet too often.
constexpr int64_t kLeastCost = 64 << 10;
// A thread is worth waking for this much.
constexpr int64_t kThreadCost = 256 << 10;

int64_t outputs_per_group(const Product& product) {
  return product.second != nullptr ? kPanelRows : kGemmOutputs;
}

int64_t column_groups(const Product& product) {
  const int64_t outputs = outputs_per_group(product);
  return product.count == 0 ? 0 : (product.first.rows + outputs - 1) / outputs;
}

int64_t group_cost(const Product& product) {
  return 2 * product.first.panel_bytes + product.count * kGemmOutputs * product.first.cols / 4;
}

// The two panels of a group: of both matrices, or two neighbours (the last one may stand alone).
void panels_of(const Product& product, int64_t group, const std::byte* (&panels)[2]) {
  const PackedMatrix& w = product.first;
  if (product.second != nullptr) {
    panels[0] = w.panel(group);
    panels[1] = product.second->panel(group);
  } else {
    panels[0] = w.panel(2 * group);
    panels[1] = w.panel(std::min(2 * group + 1, w.panels() - 1));
  }
}

// Activation rows that stay in the second-level cache while weights stream past.
constexpr int64_t kNearBytes = 512 << 10;
// Sums of a few column groups that wait for the depth's next part.
constexpr int64_t kPieceFloats = 8 * kGemmRows * kGemmOutputs;

// Blocks of the depth that are multiplied at once: all, unless so many columns of the rows leave
// the cache. Each part then meets several groups of columns before the next one is read.
int64_t blocks_per_part(const FormatInfo& format, int64_t blocks, int64_t rows_bytes) {
  if (rows_bytes <= kNearBytes) return blocks;
  const int64_t shortest = kDepthBlock / format.depth;
  const int64_t near = blocks * kNearBytes / rows_bytes;
  return std::max<int64_t>(1, near / shortest) * shortest;
}

// What follows the products: biases and activation of `count` rows from `row` on, to the output.
void finish(const Product& product, int64_t group, int64_t row, int64_t count, float* sums) {
  const RowwiseKernels& k = *kernels().rowwise;
  const int64_t column = group * outputs_per_group(product);
  const int columns =
      static_cast<int>(std::min(product.first.rows - column, outputs_per_group(product)));
  const auto bias = [&](const float* of) { return of != nullptr ? of + column : nullptr; };
  if (product.second != nullptr) {
    k.gate(product.activation, sums, count, bias(product.first_bias), bias(product.second_bias),
           columns);
  }
  for (int64_t i = 0; i < count && product.second == nullptr; ++i) {
    float* values = sums + i * kGemmOutputs;
    if (product.first_bias != nullptr) {
      k.add_scaled(values, product.first_bias + column, 1.0f, columns);
    }
    if (product.activation.kind != Activation::kIdentity) {
      k.activate(product.activation, values, columns);
    }
  }
  k.write(sums, count, columns, product.out.row(row) + column, product.out.stride, product.far);
}

}  // namespace

ProductQueue::ProductQueue(const Product* products, int64_t count, int threads)
    : products_(products), count_(count) {
  before_.reserve(static_cast<size_t>(count) + 1);
  Before before{};
  for (int64_t i = 0; i < count; ++i) {
    before.group_cost = group_cost(products[i]);
    before_.push_back(before);
    const int64_t groups = column_groups(products[i]);
    before.groups += groups;
    before.cost += groups * before.group_cost;
  }
  before_.push_back(before);
  groups_.emplace(before.groups, threads);
  // Whoever takes a piece ahead must not leave another thread without: a router of 64 experts has
  // two.
  takes_ahead_ = before.groups > 4 * threads;
}

bool is_far(int64_t rows, int64_t stride) {
  constexpr int64_t kNearFloats = 1 << 20;  // 4 MB: more than most second-level caches
  return rows * stride > kNearFloats;
}

int ProductQueue::threads_for(const Product* products, int64_t count) {
  int64_t cost = 0;
  for (int64_t i = 0; i < count; ++i) cost += column_groups(products[i]) * group_cost(products[i]);
  return static_cast<int>(std::clamp<int64_t>(cost / kThreadCost, 1, num_threads()));
}

ProductQueue::Piece ProductQueue::take(int64_t& product) noexcept {
  const auto end_of = [&](int64_t begin) {
    while (before_[product + 1].groups <= begin) ++product;  // pieces come in ascending order
    const Before& at = before_[product];
    const int64_t left = before_[count_].cost - at.cost - (begin - at.groups) * at.group_cost;
    const int64_t cost = std::max(kLeastCost, groups_->part(left));
    return std::min(before_[product + 1].groups,
                    begin + std::max<int64_t>(1, cost / std::max<int64_t>(1, at.group_cost)));
  };
  const RunQueue::Run run = groups_->take(end_of);
  if (run.begin == run.end) return {};
  const int64_t first = before_[product].groups;
  return {products_ + product, run.begin - first, run.end - first};
}

void ProductQueue::work() noexcept {
  int64_t product = 0;
  for (Piece now = take(product); now.product != nullptr;) {
    const Piece next = takes_ahead_ ? take(product) : Piece{};
    run(now, next);
    now = takes_ahead_ ? next : take(product);
  }
}

void ProductQueue::run(const Piece& piece, const Piece& next) noexcept {
  const Product& product = *piece.product;
  const PackedMatrix& w = product.first;
  const FormatInfo& format = format_info(w.format);
  const GemmFn gemm =
      kernels().gemm->run[static_cast<int>(w.format)][static_cast<int>(product.x->dot)];
  alignas(64) float out[kPieceFloats];
  GemmCall call{};
  call.blocks = format.blocks(w.cols);
  call.layout = &product.x->layout;
  const int64_t rows = std::min(product.count, kGemmRows);
  const int64_t part = blocks_per_part(format, call.blocks, rows * call.layout->row_bytes);
  const bool once = part == call.blocks && product.count <= kGemmRows;
  const int64_t together = once ? 1 : kPieceFloats / (rows * kGemmOutputs);

  // `together` groups from `first` on meet a part of the depth, then the next part, then other
  // rows.
  struct Place {
    int64_t first, row, block, group;
  };
  const auto last = [&](int64_t first) { return std::min(first + together, piece.end); };
  const auto after = [&](Place at) {
    if (++at.group < last(at.first)) return at;
    at.group = at.first;
    at.block += part;
    if (at.block < call.blocks) return at;
    at.block = 0;
    at.row += kGemmRows;
    if (at.row < product.count) return at;
    const int64_t first = last(at.first);
    return Place{first, 0, 0, first};
  };
  const auto panels = [&](const Product& of, int64_t group, int64_t block,
                          const std::byte*(&to)[2]) {
    panels_of(of, group, to);
    for (const std::byte*& panel : to) panel += block * format.block_bytes;
  };

  for (Place at = {piece.begin, 0, 0, piece.begin}, then; at.first < piece.end; at = then) {
    then = after(at);
    panels_of(product, at.group, call.panels);
    if (then.first < piece.end) {
      panels(product, then.group, then.block, call.next);
    } else if (next.product != nullptr) {
      panels(*next.product, next.begin, 0, call.next);
    } else {
      std::copy_n(call.panels, 2, call.next);  // they are in the cache
    }
    call.begin = at.block;
    call.end = std::min(at.block + part, call.blocks);
    call.count = std::min(product.count - at.row, kGemmRows);
    if (product.rows != nullptr) {
      call.x = product.x->data;
      call.rows = product.rows + at.row;
    } else {
      call.x = product.x->row(product.first_row + at.row);
    }
    const auto sums = [&](int64_t group) { return out + (group - at.first) * rows * kGemmOutputs; };
    call.out = sums(at.group);
    gemm(call);
    if (then.row == at.row && then.first == at.first) continue;
    for (int64_t group = at.first; group < last(at.first); ++group) {
      finish(product, group, at.row, call.count, sums(group));
    }
  }
}

namespace {

// Products of rows of x, each with its dot product. Rows are converted once for every kind that
// occurs.
void multiply(MatrixView<const float> x, std::vector<Product>& products,
              const std::vector<Dot>& dots) {
  bool used[kDotKinds] = {};
  for (const Dot dot : dots) used[static_cast<int>(dot)] = true;
  int64_t bytes = 0;
  for (int d = 0; d < kDotKinds; ++d) {
    if (used[d]) bytes += ActivationRows::bytes(static_cast<Dot>(d), x.rows, x.cols);
  }
  std::byte* memory = scratch(Scratch::kActivations, static_cast<size_t>(bytes));
  ActivationRows prepared[kDotKinds];
  for (int d = 0; d < kDotKinds; ++d) {
    if (!used[d]) continue;
    prepared[d] = ActivationRows(static_cast<Dot>(d), x.cols, memory);
    memory += ActivationRows::bytes(static_cast<Dot>(d), x.rows, x.cols);
  }
  for (size_t i = 0; i < products.size(); ++i) {
    products[i].x = &prepared[static_cast<int>(dots[i])];
  }

  const auto count = static_cast<int64_t>(products.size());
  const int threads = ProductQueue::threads_for(products.data(), count);
  ProductQueue queue(products.data(), count, threads);
  TaskQueue conversions;
  const auto body = [&](Team& team) {
    for (int64_t r = conversions.take(); r < x.rows; r = conversions.take()) {
      for (int d = 0; d < kDotKinds; ++d) {
        if (used[d]) {
          kernels().convert->activations[d](x.row(r), x.cols, prepared[d].layout,
                                            prepared[d].row(r));
        }
      }
    }
    team.barrier();
    queue.work();
  };
  parallel(threads, body);
}

}  // namespace

void grouped_matmul(MatrixView<const float> x, const PackedWeight& weight, const int64_t* offsets,
                    Compute compute, MatrixView<float> out) {
  const int64_t experts = weight.experts();
  MOE_CHECK(x.cols == weight.cols(), "[grouped_matmul] x has ", x.cols, " columns; experts expect ",
            weight.cols());
  MOE_CHECK(offsets[0] == 0 && offsets[experts] == x.rows, "[grouped_matmul] offsets run from ",
            offsets[0], " to ", offsets[experts], "; x has rows 0 to ", x.rows);
  for (int64_t e = 0; e < experts; ++e) {
    MOE_CHECK(offsets[e] <= offsets[e + 1], "[grouped_matmul] offsets[", e, "] is ", offsets[e],
              ", offsets[", e + 1, "] is ", offsets[e + 1], "; they must not descend");
  }
  if (x.rows == 0) return;

  std::vector<Product> products;
  std::vector<Dot> dots;
  for (int64_t e = 0; e < experts; ++e) {
    if (offsets[e] == offsets[e + 1]) continue;
    Product product;
    product.first = weight.matrix(e);
    product.first_row = offsets[e];
    product.count = offsets[e + 1] - offsets[e];
    product.out = {out.row(offsets[e]), product.count, out.cols, out.stride};
    product.far = is_far(out.rows, out.stride);
    products.push_back(product);
    dots.push_back(choose_dot(weight.format(e), compute, weight.rows(), weight.cols()));
  }
  multiply(x, products, dots);
}

void matmul_each(MatrixView<const float> x, const std::vector<MatrixProduct>& matrices,
                 Compute compute) {
  std::vector<Product> products;
  std::vector<Dot> dots;
  for (const MatrixProduct& m : matrices) {
    const PackedWeight& weight = *m.weight;
    MOE_CHECK(weight.experts() == 1, "[matmul] a weight of ", weight.experts(),
              " experts; one matrix is required");
    MOE_CHECK(x.cols == weight.cols(), "[matmul] x has ", x.cols, " columns; the weight expects ",
              weight.cols());
    Product product;
    product.first = weight.matrix(0);
    product.count = x.rows;
    product.first_bias = m.bias;
    product.out = m.out;
    product.far = is_far(m.out.rows, m.out.stride);
    products.push_back(product);
    dots.push_back(choose_dot(weight.format(0), compute, weight.rows(), weight.cols()));
  }
  if (x.rows == 0 || products.empty()) return;
  multiply(x, products, dots);
}

}  // namespace moe
