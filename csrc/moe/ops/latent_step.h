#pragma once
// A decoded token's way through multi-head latent attention, in one call (token_step.h).
//
// Definition    DeepSeek-V2 (2024), section 2.1, absorbed. For each head: key_up · q_nope,
//               attention over rows of latent and rotated key, value_up; then o of all heads. The
//               same bytes as calling the operations.

#include <optional>

#include "moe/ops/attention.h"
#include "moe/ops/token_parts.h"

namespace moe {

/// Sizes: heads h, latent L, nope N, rope R, value V. `q` gives [h · (N + R)], from the row itself
/// or, with `q_a`, from q_norm(q_a(row)), or q_a(row) without q_norm. `kv_a` gives [L + R].
struct LatentStep {
  RmsNormView norm, kv_norm;
  LinearView q, kv_a, o;
  std::optional<LinearView> q_a;
  std::optional<RmsNormView> q_norm;
  const PackedWeight* key_up = nullptr;    // h × [L, N]
  const PackedWeight* value_up = nullptr;  // h × [V, L]
  bool interleaved = true;
  float scale = 1.0f;

  int64_t hidden() const { return kv_a.cols(); }
  int64_t heads() const { return key_up->experts(); }
  int64_t latent() const { return key_up->rows(); }
  int64_t nope() const { return key_up->cols(); }
  int64_t rope() const { return kv_a.rows() - latent(); }
  int64_t value() const { return value_up->rows(); }
};

/// Throws ValueError unless the sizes of a step's parts fit together.
void check_step(const LatentStep& step);

/// out [H] = o · attention(norm(x)), x [H], of the token at position `position`, whose row [L + R]
/// is kept in `entries` there. Throws ValueError where that does not fit or has no room.
void latent_step(const LatentStep& step, const float* x, const TokenAngles& angles,
                 const TokenCache& entries, int64_t position, float* out);

}  // namespace moe
