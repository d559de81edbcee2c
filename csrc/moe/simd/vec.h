#pragma once
// The vector vocabulary: sixteen lanes under the same names for every instruction set. This header
// picks the one that the including object is compiled for (MOE_ISA, see cmake/isas.cmake).
//
// Types     F32x16  sixteen floats          I32x16  sixteen 32-bit integers
//           U8x64   sixty-four bytes        Mask16  one bit or lane mask per lane
// A "word" is 32 bits of a row's activations: one float, two bfloat16 or four int8. It is what one
// step of a dot product broadcasts to all lanes; outputs lie along the lanes.
//
// Everything is forced inline: an out-of-line copy would be AVX code that the linker may share.

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "moe/base/half.h"

#ifndef MOE_ISA
#error "simd/ is for instruction-set objects only (kernels/isa/)"
#endif

#define MOE_INLINE [[gnu::always_inline]] static inline
// After a lambda's parameters.
#define MOE_INLINE_LAMBDA __attribute__((always_inline))
#define MOE_UNROLL _Pragma("GCC unroll 64")

#if defined(MOE_ISA_scalar)
#include "moe/simd/scalar.h"
#elif !defined(__AVX512F__)
#include "moe/simd/avx2.h"
#else
#include "moe/simd/avx512.h"
#endif

namespace moe::MOE_ISA {

/// Reads a byte and forgets it: its line is in L1 afterwards.
MOE_INLINE void touch(const void* p) {
  asm volatile("" : : "r"(*static_cast<const volatile char*>(p)));
}

/// What a format's decoder (quant/) needs to reach this vocabulary without including it; everything
/// on the vectors themselves is found by their types.
struct Vec {
  using F32 = F32x16;
  using I32 = I32x16;
  using U8 = U8x64;
  template <class T>
  MOE_INLINE F32 load_f32(const T* p) {
    return load(p);
  }
  MOE_INLINE U8 load_bytes(const void* p) { return load_u8(p); }
#ifdef MOE_PAIR_SUMS
  using Row = U8x16;
  MOE_INLINE Row load_row(const void* p) { return MOE_ISA::load_row(p); }
#endif
  MOE_INLINE F32 fill(float x) { return set1(x); }
  MOE_INLINE I32 fill_i32(int32_t x) { return set1_i32(x); }
  MOE_INLINE I32 widen_u8(const uint8_t* p) { return load_i32(p); }
  MOE_INLINE I32 widen_s8(const int8_t* p) { return load_i32(p); }
  MOE_INLINE Mask16 lane_mask(uint32_t lanes) { return MOE_ISA::lane_mask(lanes); }
  template <int j>
  MOE_INLINE F32 byte(U8 a) {
    return byte_to_f32<j>(a);
  }
  template <int j>
  MOE_INLINE F32 pair(U8 a) {
    return pair_to_f32<j>(a);
  }
};

}  // namespace moe::MOE_ISA
