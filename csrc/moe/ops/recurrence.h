#pragma once
// States that are carried from token to token: linear attention, the delta rule, state spaces.

#include <cstdint>

namespace moe {

/// Everything float32 and contiguous; sizes T, key heads Hk, heads H (a multiple of Hk), K, V.
struct HeadStates {
  int64_t tokens = 0, key_heads = 0, heads = 0, key_dim = 0, value_dim = 0;
  const float* query = nullptr;  // [T, Hk, K]
  const float* key = nullptr;    // [T, Hk, K]
  const float* value = nullptr;  // [T, H, V]
  const float* decay = nullptr;  // [T, H], or [T, H, K] with decay_per_key, or [H] with decay_fixed
  bool decay_per_key = false;
  bool decay_fixed = false;
  const float* scale = nullptr;  // [T, H], or null for 1
  const float* skip = nullptr;   // [H], or null
  bool delta = false;
  const float* state = nullptr;  // [H, K, V]: before the first token; null: zeros
};

/// Token by token and head by head, with g = decay:
///   S = g · S;  v' = scale · (delta ? v - Sᵀk : v);  S += k v'ᵀ;  out = Sᵀq + skip · v
/// Gated delta rule: Yang et al. 2024 (arXiv 2412.06464), per key channel Kimi Linear (arXiv
/// 2510.26692); without delta the state space dual of Mamba-2 (Dao & Gu 2024, arXiv 2405.21060:
/// query C, key B, value x, scale the time step, skip D) and lightning attention (Qin et al. 2024,
/// arXiv 2405.17381). out [T, H, V]; new_state [H, K, V] may be `state`. A token's bytes do not
/// depend on how many are given at once. Parallel over heads and columns of V.
void advance_states(const HeadStates& inputs, float* out, float* new_state);

/// Sizes T, channels D, states N.
struct ScanInputs {
  int64_t tokens = 0, channels = 0, states = 0;
  const float* x = nullptr;      // [T, D]
  const float* step = nullptr;   // [T, D]: the time step, positive
  const float* rate = nullptr;   // [N, D]: -A
  const float* b = nullptr;      // [T, N]
  const float* c = nullptr;      // [T, N]
  const float* skip = nullptr;   // [D], or null
  const float* state = nullptr;  // [N, D], or null for zeros
};

/// s = e^(-rate · step) · s + step · x · B;  out = Σ_n s · C + skip · x: Mamba-1's selective scan
/// (Gu & Dao 2023, arXiv 2312.00752, section 3). out [T, D]; new_state [N, D] may be `state`.
/// Parallel over channels.
void selective_scan(const ScanInputs& inputs, float* out, float* new_state);

}  // namespace moe
