#pragma once
// The vocabulary of one instruction set behind plain arrays of sixteen lanes. vec_check.cpp is
// compiled once per instruction set, as the kernels are; vec_test.cpp compares every one with plain
// formulas.

#include <cstdint>

namespace moe {

struct VecCheck {
  const char* name;

  using Unary = void (*)(const float* x, float* y) noexcept;
  Unary exp, sigmoid, tanh, softplus, silu, gelu_tanh, sqrt, abs;

  using Binary = void (*)(const float* a, const float* b, float* y) noexcept;
  Binary add, sub, mul, div, max, min;
  void (*fma)(const float* a, const float* b, const float* c, float* y) noexcept;

  void (*load_bf16)(const uint16_t* x, float* y) noexcept;
  void (*load_f16)(const uint16_t* x, float* y) noexcept;
  void (*load_i8)(const int8_t* x, float* y) noexcept;
  void (*store_bf16)(const float* x, uint16_t* y) noexcept;
  void (*store_f16)(const float* x, uint16_t* y) noexcept;
  void (*round_to_i32)(const float* x, int32_t* y) noexcept;
  void (*store_i8)(const int32_t* x, int8_t* y) noexcept;

  void (*load_first)(const float* x, int n, float* y) noexcept;
  void (*store_first)(float* y, const float* x, int n) noexcept;

  /// Bits: lane i of a < b, a == b, isnan(a); y[i] = a < b ? a : b through select.
  void (*compare)(const float* a, const float* b, uint32_t* less, uint32_t* equal, uint32_t* nan,
                  float* y) noexcept;
  float (*reduce_add)(const float* x) noexcept;
  float (*reduce_max)(const float* x) noexcept;

  void (*dot_f32)(float* acc, const uint32_t* word, const float* w) noexcept;
  void (*dot_bf16)(float* acc, const uint32_t* word, const uint16_t* w) noexcept;
  void (*dot_u8s8)(int32_t* acc, const uint32_t* word, const uint8_t* w) noexcept;

  /// 64 bytes in, 64 bytes out: low nibbles, high nibbles, x ^ 0xa5.
  void (*nibbles)(const uint8_t* x, uint8_t* low, uint8_t* high, uint8_t* flipped) noexcept;
  /// (x << 2) & 0x3c, (x >> 1) & 0x55, each | x; then bfloat16 of E4M3 in low and in high bytes.
  void (*fields)(const uint8_t* x, uint8_t* left, uint8_t* right, uint16_t* low,
                 uint16_t* high) noexcept;
  /// Sixteen bytes as integers, unsigned and signed.
  void (*widen_bytes)(const uint8_t* x, int32_t* y, int32_t* z) noexcept;
  /// y[j][i]: byte j of word i as a float; z[j][i]: bfloat16 j of word i.
  void (*widen)(const uint8_t* x, float* y, float* z) noexcept;

  Unary exp_bounded, exp_of_negative;
  /// Integers: y is max, min, xor, a >> 3, a < b ? a : b, a · b, one after the other; and lane
  /// masks.
  void (*integers)(const int32_t* a, const int32_t* b, int32_t* y, uint32_t* less,
                   uint32_t* equal) noexcept;
  /// swap_lanes by 1, 2, 4, 8; pair_lanes by 1, 2, 4, 8 (clear, then set); blend_lanes<0x8d35>.
  void (*move_lanes)(const float* a, const float* b, float* swapped, float* paired,
                     int32_t* blended) noexcept;
  void (*store_compressed)(int32_t* y, const int32_t* x, uint32_t lanes) noexcept;
  uint32_t (*nonzero_bytes)(const uint8_t* x) noexcept;
  uint32_t (*first_mask)(int n) noexcept;
  uint32_t (*lane_mask)(uint32_t lanes) noexcept;
  /// acc + p + (p + 1) · steps, where p is the pairs of a word's products with w, unsigned and
  /// signed, and steps two numbers of 16 bits in a lane. Null where bytes are not multiplied so.
  void (*pair_products)(const int32_t* acc, const uint32_t* word, const uint8_t* w,
                        const int32_t* steps, int32_t* of_unsigned, int32_t* of_signed) noexcept;
  /// The bytes of sixteen words; table[x & 7].
  void (*bytes)(const int32_t* x, const uint8_t* table, uint8_t* same, uint8_t* found) noexcept;
};
inline constexpr uint32_t kBlendPattern = 0x8d35;

}  // namespace moe
