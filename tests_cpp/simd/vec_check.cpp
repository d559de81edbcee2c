#include "simd/vec_check.h"

#include "moe/simd/math.h"
#include "moe/simd/vec.h"

#define MOE_STRING_OF(x) #x
#define MOE_STRING(x) MOE_STRING_OF(x)

namespace moe::MOE_ISA {

#define MOE_UNARY(name) [](const float* x, float* y) noexcept { store(y, name(load(x))); }
#define MOE_BINARY(name) \
  [](const float* a, const float* b, float* y) noexcept { store(y, name(load(a), load(b))); }

extern const VecCheck kVecCheck;
constinit const VecCheck kVecCheck = {
    .name = MOE_STRING(MOE_ISA),
    .exp = MOE_UNARY(exp),
    .sigmoid = MOE_UNARY(sigmoid),
    .tanh = MOE_UNARY(tanh),
    .softplus = MOE_UNARY(softplus),
    .silu = MOE_UNARY(silu),
    .gelu_tanh = MOE_UNARY(gelu_tanh),
    .sqrt = MOE_UNARY(sqrt),
    .abs = MOE_UNARY(abs),
    .add = MOE_BINARY(add),
    .sub = MOE_BINARY(sub),
    .mul = MOE_BINARY(mul),
    .div = MOE_BINARY(div),
    .max = MOE_BINARY(max),
    .min = MOE_BINARY(min),
    .fma = [](const float* a, const float* b, const float* c,
              float* y) noexcept { store(y, fma(load(a), load(b), load(c))); },
    .load_bf16 = [](const uint16_t* x,
                    float* y) noexcept { store(y, load(reinterpret_cast<const bf16*>(x))); },
    .load_f16 = [](const uint16_t* x,
                   float* y) noexcept { store(y, load(reinterpret_cast<const f16*>(x))); },
    .load_i8 = [](const int8_t* x, float* y) noexcept { store(y, load(x)); },
    .store_bf16 = [](const float* x,
                     uint16_t* y) noexcept { store(reinterpret_cast<bf16*>(y), load(x)); },
    .store_f16 = [](const float* x,
                    uint16_t* y) noexcept { store(reinterpret_cast<f16*>(y), load(x)); },
    .round_to_i32 = [](const float* x,
                       int32_t* y) noexcept { store_i32(y, round_to_i32(load(x))); },
    .store_i8 = [](const int32_t* x, int8_t* y) noexcept { store_i8(y, load_i32(x)); },
    .load_first = [](const float* x, int n, float* y) noexcept { store(y, load_first(x, n)); },
    .store_first = [](float* y, const float* x, int n) noexcept { store_first(y, load(x), n); },
    .compare =
        [](const float* a, const float* b, uint32_t* below, uint32_t* same, uint32_t* nan,
           float* y) noexcept {
          const F32x16 va = load(a), vb = load(b);
          *below = to_bitmask(less(va, vb));
          *same = to_bitmask(equal(va, vb));
          *nan = to_bitmask(is_nan(va));
          store(y, select(less(va, vb), va, vb));
        },
    .reduce_add = [](const float* x) noexcept { return reduce_add(load(x)); },
    .reduce_max = [](const float* x) noexcept { return reduce_max(load(x)); },
    .dot_f32 =
        [](float* acc, const uint32_t* word, const float* w) noexcept {
          store(acc, dot_f32(load(acc), broadcast_word(word), load(w)));
        },
    .dot_bf16 =
        [](float* acc, const uint32_t* word, const uint16_t* w) noexcept {
          store(acc, dot_bf16(load(acc), broadcast_word(word), load_u8(w)));
        },
    .dot_u8s8 =
        [](int32_t* acc, const uint32_t* word, const uint8_t* w) noexcept {
          store_i32(acc, dot_u8s8(load_i32(acc), broadcast_word(word), load_u8(w)));
        },
    .nibbles =
        [](const uint8_t* x, uint8_t* low, uint8_t* high, uint8_t* flipped) noexcept {
          const U8x64 bytes = load_u8(x);
          store_u8(low, bit_field(bytes, 0, 15));
          store_u8(high, bit_field(bytes, 4, 15));
          store_u8(flipped, xor_bytes(bytes, 0xa5));
        },
    .fields =
        [](const uint8_t* x, uint8_t* left, uint8_t* right, uint16_t* low,
           uint16_t* high) noexcept {
          const U8x64 bytes = load_u8(x);
          store_u8(left, or_bytes(bit_field(bytes, -2, 0x3c), bytes));
          store_u8(right, or_bytes(bit_field(bytes, 1, 0x55), bytes));
          U8x64 first, second;
          e4m3_pairs(bytes, first, second);
          store_u8(low, first);
          store_u8(high, second);
        },
    .widen_bytes =
        [](const uint8_t* x, int32_t* y, int32_t* z) noexcept {
          store_i32(y, load_i32(x));
          store_i32(z, load_i32(reinterpret_cast<const int8_t*>(x)));
        },
    .widen =
        [](const uint8_t* x, float* y, float* z) noexcept {
          const U8x64 bytes = load_u8(x);
          store(y, byte_to_f32<0>(bytes));
          store(y + 16, byte_to_f32<1>(bytes));
          store(y + 32, byte_to_f32<2>(bytes));
          store(y + 48, byte_to_f32<3>(bytes));
          store(z, pair_to_f32<0>(bytes));
          store(z + 16, pair_to_f32<1>(bytes));
        },
    .exp_bounded = MOE_UNARY(exp_bounded),
    .exp_of_negative = MOE_UNARY(exp_of_negative),
    .integers =
        [](const int32_t* a, const int32_t* b, int32_t* y, uint32_t* below,
           uint32_t* same) noexcept {
          const I32x16 va = load_i32(a), vb = load_i32(b);
          store_i32(y, max(va, vb));
          store_i32(y + 16, min(va, vb));
          store_i32(y + 32, xor_bits(va, vb));
          store_i32(y + 48, shift_right(va, 3));
          store_i32(y + 64, select(less(va, vb), va, vb));
          store_i32(y + 80, mul(va, vb));
          *below = to_bitmask(less(va, vb));
          *same = to_bitmask(equal(va, vb));
        },
    .move_lanes =
        [](const float* a, const float* b, float* swapped, float* paired,
           int32_t* blended) noexcept {
          const F32x16 va = load(a), vb = load(b);
          store(swapped, swap_lanes<1>(va));
          store(swapped + 16, swap_lanes<2>(va));
          store(swapped + 32, swap_lanes<4>(va));
          store(swapped + 48, swap_lanes<8>(va));
          const LanePair pairs[4] = {pair_lanes<1>(va, vb), pair_lanes<2>(va, vb),
                                     pair_lanes<4>(va, vb), pair_lanes<8>(va, vb)};
          for (int i = 0; i < 4; ++i) {
            store(paired + 32 * i, pairs[i].clear);
            store(paired + 32 * i + 16, pairs[i].set);
          }
          store_i32(blended, blend_lanes<kBlendPattern>(bits(va), bits(vb)));
        },
    .store_compressed = [](int32_t* y, const int32_t* x,
                           uint32_t lanes) noexcept { store_compressed(y, load_i32(x), lanes); },
    .nonzero_bytes = [](const uint8_t* x) noexcept { return to_bitmask(nonzero_bytes(x)); },
    .first_mask = [](int n) noexcept { return to_bitmask(first_mask(n)); },
    .lane_mask = [](uint32_t lanes) noexcept { return to_bitmask(lane_mask(lanes)); },
#ifdef MOE_PAIR_SUMS
    .pair_products =
        [](const int32_t* acc, const uint32_t* word, const uint8_t* w, const int32_t* steps,
           int32_t* of_unsigned, int32_t* of_signed) noexcept {
          const Words x = broadcast_word(word);
          const U8x64 bytes = load_u8(w);
          const auto sum = [&](I16x32 pairs) {
            const I32x16 first = dot_i16(load_i32(acc), pairs, set1_i16(1));
            return dot_i16(first, add(pairs, set1_i16(1)), load_i16(steps));
          };
          store_i32(of_unsigned, sum(pair_products(x, bytes)));
          store_i32(of_signed, sum(pair_products(x, bytes, byte_sizes(bytes))));
        },
#else
    .pair_products = nullptr,
#endif
    .bytes =
        [](const int32_t* x, const uint8_t* table, uint8_t* same, uint8_t* found) noexcept {
          const U8x64 bytes = as_bytes(load_i32(x));
          store_u8(same, bytes);
          store_u8(found, lookup8(bytes, table));
        },
};

}  // namespace moe::MOE_ISA
