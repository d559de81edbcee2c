#include "moe/ops/moe_block.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "moe/base/check.h"
#include "moe/ops/grouped_gemm.h"
#include "moe/ops/plan.h"

namespace moe {

namespace {

// What the hidden rows of one pass may take. More tokens than fit are computed in several passes,
// which changes no byte of any token.
constexpr int64_t kHiddenBytes = int64_t{256} << 20;

void check_bank(const ExpertBank& bank, int64_t hidden, const char* what) {
  const PackedWeight& up = *bank.up;
  const PackedWeight& down = *bank.down;
  MOE_CHECK(up.cols() == hidden, "[moe_ffn] x has ", hidden, " columns; ", what, " expect ",
            up.cols());
  MOE_CHECK(down.cols() == up.rows() && down.rows() == hidden && down.experts() == up.experts(),
            "[moe_ffn] down of ", what, " is [", down.experts(), ", ", down.rows(), ", ",
            down.cols(), "]; up is [", up.experts(), ", ", up.rows(), ", ", up.cols(), "]");
  if (bank.gate == nullptr) return;
  const PackedWeight& gate = *bank.gate;
  MOE_CHECK(gate.experts() == up.experts() && gate.rows() == up.rows() && gate.cols() == up.cols(),
            "[moe_ffn] gate of ", what, " is [", gate.experts(), ", ", gate.rows(), ", ",
            gate.cols(), "]; up is [", up.experts(), ", ", up.rows(), ", ", up.cols(), "]");
  for (int64_t e = 0; e < up.experts(); ++e) {
    MOE_CHECK(gate.format(e) == up.format(e), "[moe_ffn] gate of expert ", e, " is ",
              format_info(gate.format(e)).name, ", up is ", format_info(up.format(e)).name,
              "; they are read together and share a format");
  }
}

// Floats from one row of a buffer to the next: an odd number of cache lines, because the rows of
// one column, which a product writes together, must not share the sets of a cache.
int64_t row_stride(int64_t cols) { return ((cols + 15) / 16 | 1) * 16; }

// Rows of the sorted order that go through one expert's weights.
struct Segment {
  const ExpertBank* bank;
  int64_t expert;
  int64_t first;  // row of the sorted order
  int64_t count;
  const int32_t* tokens;  // [count]; null: token i is row i (the shared expert)
};

// One pass over some tokens: every buffer and list that the phases need, made before any thread.
class Pass {
 public:
  Pass(MatrixView<const float> x, const AssignmentView& assignment, const ExpertBank& experts,
       const SharedExpert* shared, Compute compute, MatrixView<float> out)
      : x_(x), assignment_(assignment), shared_(shared), compute_(compute), out_(out) {
    make_plan(assignment.experts, assignment.tokens, assignment.k, experts.up->experts(), &plan_);
    routed_ = static_cast<int64_t>(plan_.rows.size());
    for (int64_t e = 0; e < experts.up->experts(); ++e) {
      const int64_t first = plan_.offsets[e], count = plan_.offsets[e + 1] - first;
      if (count > 0) segments_.push_back({&experts, e, first, count, plan_.rows.data() + first});
    }
    if (shared != nullptr) {
      for (int64_t e = 0; e < shared->bank.up->experts(); ++e) {
        segments_.push_back({&shared->bank, e, routed_ + e * x.rows, x.rows, nullptr});
      }
    }
    sorted_rows_ = segments_.empty() ? 0 : segments_.back().first + segments_.back().count;
    positions_of_slots();
    reserve_memory();
    list_products();
    threads_ = ProductQueue::threads_for(hidden_products_.data(), products());
    hidden_queue_.emplace(hidden_products_.data(), products(), threads_);
    down_queue_.emplace(down_products_.data(), products(), threads_);
  }

  int threads() const { return threads_; }

  // A team's way through the block. One barrier after each phase whose results others read.
  void run(Team& team) noexcept {
    prepare_inputs();
    team.barrier();
    hidden_queue_->work();
    team.barrier();
    prepare_hidden();
    team.barrier();
    down_queue_->work();
    team.barrier();
    combine();
  }

 private:
  int64_t products() const { return static_cast<int64_t>(segments_.size()); }

  static Dot dot_of(const PackedWeight& w, const Segment& s, Compute compute) {
    return choose_dot(w.format(s.expert), compute, w.rows(), w.cols());
  }

  // Where the sorted order holds each slot's result.
  void positions_of_slots() {
    position_.assign(static_cast<size_t>(assignment_.tokens) * assignment_.k, -1);
    for (int64_t i = 0; i < routed_; ++i) {
      position_[int64_t{plan_.rows[i]} * assignment_.k + plan_.slots[i]] = static_cast<int32_t>(i);
    }
  }

  void reserve_memory() {
    bool used[kDotKinds] = {};
    int64_t input_bytes = 0, hidden_bytes = 0, hidden_floats = 0;
    for (const Segment& s : segments_) {
      used[static_cast<int>(dot_of(*s.bank->up, s, compute_))] = true;
      const Dot dot = dot_of(*s.bank->down, s, compute_);
      const int64_t inter = s.bank->up->rows();
      hidden_floats += s.count * row_stride(inter);
      hidden_bytes += ActivationRows::bytes(dot, s.count, inter);
    }
    // A token that goes to an expert more than once has several rows there, be it the only one.
    const bool several = std::any_of(segments_.begin(), segments_.end(),
                                     [](const Segment& s) { return s.count > 1; });
    sorted_inputs_ =
        assignment_.weighs_input || (kernels().gemm->rows_together && (x_.rows > 1 || several));
    input_rows_ = sorted_inputs_ ? sorted_rows_ : x_.rows;
    for (int d = 0; d < kDotKinds; ++d) {
      if (used[d]) input_bytes += ActivationRows::bytes(static_cast<Dot>(d), input_rows_, x_.cols);
    }
    const size_t scaled = assignment_.weighs_input ? static_cast<size_t>(input_rows_ * x_.cols) : 0;
    std::byte* input =
        scratch(Scratch::kActivations, static_cast<size_t>(input_bytes) + scaled * 4);
    for (int d = 0; d < kDotKinds; ++d) {
      if (!used[d]) continue;
      inputs_[d] = ActivationRows(static_cast<Dot>(d), x_.cols, input);
      input += ActivationRows::bytes(static_cast<Dot>(d), input_rows_, x_.cols);
    }
    scaled_ = reinterpret_cast<float*>(input);

    std::byte* rows = scratch(Scratch::kHidden, static_cast<size_t>(hidden_bytes) +
                                                    static_cast<size_t>(hidden_floats) * 4);
    auto* floats = reinterpret_cast<float*>(rows + hidden_bytes);
    for (const Segment& s : segments_) {
      const Dot dot = dot_of(*s.bank->down, s, compute_);
      const int64_t inter = s.bank->up->rows();
      hidden_rows_.emplace_back(dot, inter, rows);
      rows += ActivationRows::bytes(dot, s.count, inter);
      hidden_.emplace_back(floats, s.count, inter, row_stride(inter));
      floats += s.count * row_stride(inter);
    }
    const int64_t stride = row_stride(x_.cols);
    results_ = {scratch_of<float>(Scratch::kRows, static_cast<size_t>(sorted_rows_ * stride)),
                sorted_rows_, x_.cols, stride};
  }

  void list_products() {
    second_.reserve(segments_.size());
    for (size_t i = 0; i < segments_.size(); ++i) {
      const Segment& s = segments_[i];
      const ExpertBank& bank = *s.bank;
      const auto bias = [&](const float* b, int64_t width) {
        return b != nullptr ? b + s.expert * width : nullptr;
      };
      const int64_t inter = bank.up->rows();
      Product hidden;
      hidden.x = &inputs_[static_cast<int>(dot_of(*bank.up, s, compute_))];
      if (sorted_inputs_) {
        hidden.first_row = s.first;
      } else {
        hidden.rows = s.tokens;
      }
      hidden.count = s.count;
      hidden.activation = bank.activation;
      hidden.out = hidden_[i];
      hidden.far = is_far(sorted_rows_, hidden_[i].stride);
      if (bank.gate != nullptr) {
        second_.push_back(bank.up->matrix(s.expert));
        hidden.first = bank.gate->matrix(s.expert);
        hidden.second = &second_.back();
        hidden.first_bias = bias(bank.gate_bias, inter);
        hidden.second_bias = bias(bank.up_bias, inter);
      } else {
        hidden.first = bank.up->matrix(s.expert);
        hidden.first_bias = bias(bank.up_bias, inter);
      }
      hidden_products_.push_back(hidden);

      Product down;
      down.first = bank.down->matrix(s.expert);
      down.first_bias = bias(bank.down_bias, x_.cols);
      down.x = &hidden_rows_[i];
      down.count = s.count;
      down.out = {results_.row(s.first), s.count, x_.cols, results_.stride};
      down.far = is_far(sorted_rows_, results_.stride);
      down_products_.push_back(down);
    }
  }

  void prepare_inputs() noexcept {
    if (sorted_inputs_ && !assignment_.weighs_input) return prepare_tokens();
    for (int64_t r = inputs_done_.take(); r < input_rows_; r = inputs_done_.take()) {
      const int64_t token = !sorted_inputs_ ? r
                            : r < routed_   ? plan_.rows[r]
                                            : (r - routed_) % x_.rows;
      const float* row = x_.row(token);
      if (assignment_.weighs_input) {
        const float weight =
            r < routed_ ? assignment_.weights[token * assignment_.k + plan_.slots[r]] : 1.0f;
        kernels().rowwise->scale(scaled_ + r * x_.cols, row, weight, x_.cols);
        row = scaled_ + r * x_.cols;
      }
      convert_input(row, r);
    }
  }

  // The rows of a token are the same: the first one is converted, the others are copies.
  void prepare_tokens() noexcept {
    for (int64_t t = inputs_done_.take(); t < x_.rows; t = inputs_done_.take()) {
      int64_t first = -1;
      const auto put = [&](int64_t r) {
        if (first < 0) {
          convert_input(x_.row(t), first = r);
          return;
        }
        for (const ActivationRows& to : inputs_) {
          if (to.data != nullptr) std::memcpy(to.row(r), to.row(first), to.layout.row_bytes);
        }
      };
      for (int slot = 0; slot < assignment_.k; ++slot) {
        const int32_t position = position_[t * assignment_.k + slot];
        if (position >= 0) put(position);
      }
      for (int64_t r = routed_ + t; r < sorted_rows_; r += x_.rows) put(r);
    }
  }

  void convert_input(const float* x, int64_t r) noexcept {
    for (int d = 0; d < kDotKinds; ++d) {
      if (inputs_[d].data == nullptr) continue;
      kernels().convert->activations[d](x, x_.cols, inputs_[d].layout, inputs_[d].row(r));
    }
  }

  void prepare_hidden() noexcept {
    const KernelTable& k = kernels();
    size_t segment = 0;
    for (int64_t r = hidden_done_.take(); r < sorted_rows_; r = hidden_done_.take()) {
      while (r >= segments_[segment].first + segments_[segment].count) ++segment;
      const int64_t row = r - segments_[segment].first;
      const ActivationRows& to = hidden_rows_[segment];
      k.convert->activations[static_cast<int>(to.dot)](
          hidden_[segment].row(row), hidden_[segment].cols, to.layout, to.row(row));
    }
  }

  void combine() noexcept {
    const KernelTable& k = kernels();
    for (int64_t t = combined_.take(); t < x_.rows; t = combined_.take()) {
      float* out = out_.row(t);
      std::fill_n(out, out_.cols, 0.0f);
      for (int slot = 0; slot < assignment_.k; ++slot) {
        const int32_t position = position_[t * assignment_.k + slot];
        if (position < 0) continue;
        const float weight =
            assignment_.weighs_input ? 1.0f : assignment_.weights[t * assignment_.k + slot];
        k.rowwise->add_scaled(out, results_.row(position), weight, out_.cols);
      }
      if (shared_ == nullptr) continue;
      const float scale = shared_->scale != nullptr ? shared_->scale[t] : 1.0f;
      for (int64_t row = routed_ + t; row < sorted_rows_; row += x_.rows) {
        k.rowwise->add_scaled(out, results_.row(row), scale, out_.cols);
      }
    }
  }

  MatrixView<const float> x_;
  const AssignmentView& assignment_;
  const SharedExpert* shared_;
  Compute compute_;
  MatrixView<float> out_;
  int threads_ = 1;

  Plan plan_;
  int64_t routed_ = 0, sorted_rows_ = 0, input_rows_ = 0;
  bool sorted_inputs_ =
      false;  // an input row for each row of the sorted order, else for each token
  std::vector<Segment> segments_;
  std::vector<int32_t> position_;
  ActivationRows inputs_[kDotKinds];
  float* scaled_ = nullptr;  // [input_rows, H] where the weights scale the input
  std::vector<ActivationRows> hidden_rows_;
  std::vector<MatrixView<float>> hidden_;
  MatrixView<float> results_;
  std::vector<PackedMatrix> second_;
  std::vector<Product> hidden_products_, down_products_;
  std::optional<ProductQueue> hidden_queue_, down_queue_;  // made once the lists stand
  TaskQueue inputs_done_, hidden_done_, combined_;
};

}  // namespace

void moe_ffn(MatrixView<const float> x, const AssignmentView& assignment, const ExpertBank& experts,
             const SharedExpert* shared, Compute compute, MatrixView<float> out) {
  check_bank(experts, x.cols, "experts");
  if (shared != nullptr) check_bank(shared->bank, x.cols, "shared experts");
  MOE_CHECK(assignment.tokens == x.rows, "[moe_ffn] the assignment has ", assignment.tokens,
            " tokens; x has ", x.rows);
  const int64_t row_bytes =
      8 * (assignment.k * (experts.up->rows() + x.cols) +
           (shared != nullptr ? shared->bank.up->experts() * shared->bank.up->rows() : 0) + x.cols);
  const int64_t tokens = std::max<int64_t>(1, kHiddenBytes / row_bytes);
  for (int64_t begin = 0; begin < x.rows; begin += tokens) {
    const int64_t count = std::min(tokens, x.rows - begin);
    AssignmentView part = assignment;
    part.tokens = count;
    part.experts += begin * assignment.k;
    part.weights += begin * assignment.k;
    SharedExpert part_shared;
    if (shared != nullptr) {
      part_shared = *shared;
      if (shared->scale != nullptr) part_shared.scale += begin;
    }
    Pass pass({x.row(begin), count, x.cols, x.stride}, part, experts,
              shared != nullptr ? &part_shared : nullptr, compute,
              {out.row(begin), count, out.cols, out.stride});
    const auto body = [&](Team& team) { pass.run(team); };
    parallel(pass.threads(), body);
  }
}

void moe_ffn_plain(const PlainTokens& in, const ExpertBank& experts, Compute compute, void* out) {
  const int64_t count = experts.up->experts(), slots = in.tokens * in.k;
  const int64_t values = in.tokens * in.hidden;
  for (int64_t i = 0; i < slots; ++i) {
    MOE_CHECK(in.experts[i] >= 0 && in.experts[i] <= count, "[moekit] an expert id is ",
              in.experts[i], "; 0 to ", count, " is required");
  }
  float* x = scratch_of<float>(Scratch::kGathered, static_cast<size_t>(2 * values + 2 * slots));
  float *result = x + values, *weights = result + values;
  auto* ids = reinterpret_cast<int32_t*>(weights + slots);
  const KernelTable& k = kernels();
  k.sample->widen(in.weights, in.weights_dtype, slots, weights);
  for (int64_t i = 0; i < slots; ++i) {
    ids[i] = in.experts[i] == count ? -1 : static_cast<int32_t>(in.experts[i]);
  }
  const auto bytes = static_cast<int64_t>(dtype_bytes(in.dtype));
  const bool plain = in.dtype == DType::kF32;
  if (!plain) k.sample->widen(in.x, in.dtype, values, x);
  const float* rows = plain ? static_cast<const float*>(in.x) : x;
  float* to = plain ? static_cast<float*>(out) : result;
  const AssignmentView assignment{ids, weights, in.tokens, in.k, in.weighs_input};
  moe_ffn({rows, in.tokens, in.hidden}, assignment, experts, nullptr, compute,
          {to, in.tokens, in.hidden});
  if (plain) return;
  const KeepRowFn round = k.attention->keep[static_cast<int>(in.dtype)];
  for (int64_t t = 0; t < in.tokens; ++t) {
    round(result + t * in.hidden, in.hidden, static_cast<std::byte*>(out) + t * in.hidden * bytes,
          nullptr);
  }
}

}  // namespace moe
