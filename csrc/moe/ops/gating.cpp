#include "moe/ops/gating.h"

#include <algorithm>

#include "moe/base/check.h"
#include "moe/base/parallel.h"

namespace moe {

namespace {

/// Some 16 thousand exponentials per task (10 µs).
int64_t grain_of(int64_t cols) {
  return std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(1, cols));
}

}  // namespace

void gate(MatrixView<const float> x, MatrixView<const float> gate, Gating gating, float* out) {
  const auto kernel = kernels().recurrence->gate;
  const auto piece = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* from = x.data == nullptr ? nullptr : x.row(i);
      kernel(from, gate.row(i), gating, gate.cols, out + i * gate.cols);
    }
  };
  parallel_for(gate.rows, grain_of(gate.cols), piece);
}

void gate(MatrixView<const float> x, MatrixView<const float> gate, Activation activation,
          float* out) {
  ActivationSpec spec;
  spec.kind = activation;
  const auto piece = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* to = out + i * gate.cols;
      std::copy_n(gate.row(i), gate.cols, to);
      kernels().rowwise->activate(spec, to, gate.cols);
      if (x.data == nullptr) continue;
      const float* by = x.row(i);
      for (int64_t c = 0; c < gate.cols; ++c) to[c] *= by[c];
    }
  };
  parallel_for(gate.rows, grain_of(gate.cols), piece);
}

void gated_rms_norm(MatrixView<const float> x, MatrixView<const float> gate, const GatedNorm& norm,
                    float* out) {
  MOE_CHECK(norm.groups >= 1 && x.cols % norm.groups == 0, "[gated_rms_norm] ", norm.groups,
            " groups; a divisor of the ", x.cols, " columns is required");
  const auto multiply = kernels().recurrence->gate;
  const auto rms = kernels().norm->rms_norm;
  const int64_t size = x.cols / norm.groups;
  const auto piece = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* to = out + i * x.cols;
      const float* from = x.row(i);
      if (norm.gate_first) {
        multiply(from, gate.row(i), norm.gating, x.cols, to);
        from = to;
      }
      for (int64_t group = 0; group < norm.groups; ++group) {
        NormRow row{};
        row.x = from + group * size;
        row.weight = norm.weight + group * size;
        row.eps = norm.eps;
        row.n = size;
        row.out = to + group * size;
        rms(row);
      }
      if (!norm.gate_first) multiply(to, gate.row(i), norm.gating, x.cols, to);
    }
  };
  parallel_for(x.rows, grain_of(x.cols), piece);
}

void decay_factors(MatrixView<const float> x, const DecayParts& parts, float* decay, float* step) {
  const auto kernel = kernels().recurrence->decay;
  const auto piece = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      DecayRow row{};
      row.x = x.row(i);
      row.bias = parts.bias;
      row.rate = parts.rate;
      row.low = parts.low;
      row.high = parts.high;
      row.bound = parts.bound;
      row.n = x.cols;
      row.decay = decay == nullptr ? nullptr : decay + i * x.cols;
      row.step = step == nullptr ? nullptr : step + i * x.cols;
      kernel(row);
    }
  };
  parallel_for(x.rows, grain_of(x.cols), piece);
}

}  // namespace moe
