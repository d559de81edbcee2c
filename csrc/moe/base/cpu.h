#pragma once
// What the processor and the operating system can run.

#include <cstdint>
#include <string>

namespace moe {

enum CpuFeature : uint32_t {
  kAvx2 = 1u << 0,        // AVX2, FMA, F16C, BMI1, BMI2, LZCNT
  kAvx512 = 1u << 1,      // AVX-512 F, BW, DQ, VL
  kAvx512Vnni = 1u << 2,  // int8 dot products
  kAvx512Bf16 = 1u << 3,  // bfloat16 pair dot products
  kAvxVnni = 1u << 4,     // int8 dot products of AVX2's width
  kAmx = 1u << 5,         // tiles: int8 and bfloat16 products
  kAvx512Vbmi = 1u << 6,  // lookups of bytes across a register
  kGfni = 1u << 7,        // maps of the bits of bytes
};

/// A set of CpuFeature bits: CPUID and the state that the operating system saves (XCR0), both. Asks
/// Linux for the use of tiles, which it grants to a whole process and not before.
uint32_t cpu_features();

/// The processor's own name, e.g. "AMD EPYC"; "unknown" where it cannot be asked.
std::string cpu_name();

/// Bytes of the largest cache that the operating system knows of; 0 where it knows none.
int64_t last_level_cache_bytes();

}  // namespace moe
