#pragma once
// What the kernels of recurrent mixers are given: short convolutions, gates, states that decay.

#include <cstdint>

namespace moe {

/// What a gate's numbers go through before they multiply.
enum class Gating : uint8_t { kIdentity, kSilu, kSigmoid };

/// One token of a causal convolution along time, every channel with taps of its own.
struct ConvRow {
  const float* const* inputs;  // [taps], oldest first: rows of n channels
  const float* weight;         // [taps][n]
  const float* bias;           // [n], or null
  int taps;
  Gating activation;
  int64_t n;
  float* out;
};

/// How fast a state forgets: step = clamp(softplus(x + bias)), decay = e^(-rate · step); or, with
/// `bound` != 0, step = sigmoid(rate · (x + bias)) and decay = e^(bound · step).
struct DecayRow {
  const float* x;
  const float* bias;  // [n], or null
  const float* rate;  // [n]
  float low, high;    // of the step
  float bound;
  int64_t n;
  float* decay;  // may be null, as may rate then
  float* step;   // may be null
};

/// Columns of a state that one call walks through time: two vectors.
inline constexpr int kStateColumns = 32;

/// Up to kStateColumns columns of one head's state, all tokens, in place. Strides are from token to
/// token, in floats.
struct StateCall {
  float* state;  // [keys][kStateColumns]; columns beyond `columns` hold zeros
  int64_t keys, tokens;
  const float* query;
  const float* key;  // [keys] each
  int64_t query_stride, key_stride;
  const float* value;  // [columns]
  int64_t value_stride;
  const float* decay;  // 1 or, with decay_per_key, `keys` of them
  int64_t decay_stride;
  bool decay_per_key;
  const float* scale;  // one per token, or null for 1
  int64_t scale_stride;
  bool delta;  // the value minus what the state recalls for the key is written, not the value
  float skip;  // times the value, added to the output
  int columns;
  float* out;
  int64_t out_stride;
};

/// Up to kStateColumns channels of a Mamba-1 scan: every channel has states of its own.
struct ScanCall {
  float* state;       // [states][kStateColumns]
  const float* rate;  // [states][kStateColumns]: -A
  int64_t states, tokens;
  const float* x;
  const float* step;  // [columns]
  int64_t x_stride, step_stride;
  const float* in;          // B, [states]
  const float* out_weight;  // C, [states]
  int64_t in_stride, out_weight_stride;
  const float* skip;  // D, [columns], or null
  int columns;
  float* out;
  int64_t out_stride;
};

struct RecurrenceKernels {
  void (*convolve)(const ConvRow&) noexcept;
  /// out = x · gating(gate); x null: gating(gate). out may be either.
  void (*gate)(const float* x, const float* gate, Gating, int64_t n, float* out) noexcept;
  void (*decay)(const DecayRow&) noexcept;
  void (*advance)(const StateCall&) noexcept;
  void (*scan)(const ScanCall&) noexcept;
};

}  // namespace moe
