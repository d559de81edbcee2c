#pragma once
// How several residual streams are read, written and mixed: hyper-connections.

#include <cstdint>

namespace moe {

inline constexpr int64_t kMaxStreams = 64;

struct HyperConnectionInputs {
  const float* mixes;  // [T, (2 + n) n]: for each token n numbers to read, n to write, n x n to mix
  const float* base;   // [(2 + n) n], added
  const float* scales;  // [3], of the three parts
  int64_t tokens = 0, streams = 0;
  int64_t iterations = 1;  // of Sinkhorn and Knopp's normalisation
  float eps = 1e-6f;
};

/// read [T, n] = sigmoid + eps; write [T, n] = 2 · sigmoid; mix [T, n, n]: a softmax over rows, +
/// eps, then columns and rows divided by (their sums + eps) in turn until columns were `iterations`
/// times. Manifold-constrained hyper-connections (Xie et al. 2026), section 4; DeepSeek-V4, section
/// 2.2. Throws ValueError unless 1 <= n <= kMaxStreams and iterations >= 1. Parallel over tokens.
void hyper_connection(const HyperConnectionInputs& inputs, float* read, float* write, float* mix);

struct MixStreamsInputs {
  const float* streams;            // [T, n, H]
  const float* weights;            // [T, n, m]
  const float* added = nullptr;    // [T, H], or none
  const float* factors = nullptr;  // [T, m], of what is added
  int64_t tokens = 0, streams_in = 0, streams_out = 0, hidden = 0;
};

/// out [T, m, H]: out[k] = Σ_j weights[j][k] · streams[j] + factors[k] · added, in the order of j.
/// `out` must not overlap the inputs. Parallel over tokens.
void mix_streams(const MixStreamsInputs& inputs, float* out);

}  // namespace moe
