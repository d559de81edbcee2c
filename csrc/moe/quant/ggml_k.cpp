#include "moe/quant/ggml_k.h"

#include <algorithm>
#include <cmath>

#include "moe/quant/ggml_fields.h"

namespace moe {

namespace {

// Eight pairs of six bits in 12 bytes: bytes 0-3 hold s 0-3, bytes 4-7 m 0-3 (low six bits); bytes
// 8-11 the nibbles of s and m 4-7, whose upper two bits are the top bits of bytes 0-7.
void read_six_bit_pairs(const uint8_t* file, SixBitScales::Row& by) {
  for (int g = 0; g < 4; ++g) {
    by.s[g] = file[g] & 63;
    by.m[g] = file[4 + g] & 63;
    by.s[4 + g] = static_cast<uint8_t>((file[8 + g] & 15) | (file[g] >> 6) << 4);
    by.m[4 + g] = static_cast<uint8_t>(file[8 + g] >> 4 | (file[4 + g] >> 6) << 4);
  }
}

// x's steps of `unit` in [low, high].
int steps_of(float x, float unit, int low, int high) {
  if (unit == 0.0f) return 0;
  return static_cast<int>(std::nearbyint(
      std::min(std::max(static_cast<float>(low), x / unit), static_cast<float>(high))));
}

// Scales d · s with s in [low, high] for groups of symmetric codes; `fit` gives a group's own
// scale, `round` its codes for a given one.
template <int kGroups, class Row, class Fit, class Round>
void quantise_byte_scales(int low, int high, Row& by, Fit fit, Round round) {
  float own[kGroups];
  for (int g = 0; g < kGroups; ++g) own[g] = fit(g);
  by.d = to_f16(signed_largest(own, kGroups) / static_cast<float>(low));
  const float d = to_float(by.d);
  for (int g = 0; g < kGroups; ++g) {
    by.s[g] = static_cast<int8_t>(steps_of(own[g], d, low, high));
    round(g, d * static_cast<float>(by.s[g]));
  }
}

// Scales d · s and minima −dmin · m with s and m in [0, top].
template <int kGroups, class Put>
void quantise_affine_groups(const float* x, int levels, int top, uint8_t* codes, f16& d, f16& dmin,
                            Put put) {
  constexpr int kGroup = 256 / kGroups;
  Affine own[kGroups];
  float scale = 0.0f, depth = 0.0f;
  for (int g = 0; g < kGroups; ++g) {
    own[g] = fit_affine(x + g * kGroup, kGroup, levels);
    scale = std::max(scale, own[g].scale);
    depth = std::max(depth, -own[g].min);
  }
  d = to_f16(scale / static_cast<float>(top));
  dmin = to_f16(depth / static_cast<float>(top));
  const float unit = to_float(d), min_unit = to_float(dmin);
  for (int g = 0; g < kGroups; ++g) {
    const int s = steps_of(own[g].scale, unit, 0, top);
    const int m = steps_of(-own[g].min, min_unit, 0, top);
    put(g, s, m);
    affine_codes(x + g * kGroup, kGroup,
                 {unit * static_cast<float>(s), -min_unit * static_cast<float>(m)}, levels,
                 codes + g * kGroup);
  }
}

void quantise_six_bit(const float* x, int levels, uint8_t* codes, SixBitScales::Row& by) {
  quantise_affine_groups<8>(x, levels, 63, codes, by.d, by.dmin, [&](int g, int s, int m) {
    by.s[g] = static_cast<uint8_t>(s);
    by.m[g] = static_cast<uint8_t>(m);
  });
}

}  // namespace

void Q2KFormat::read(const uint8_t* file, uint8_t* codes, Row& by) {
  by.d = half_at(file + 80);
  by.dmin = half_at(file + 82);
  std::memcpy(by.sm, file, 16);
  for (int k = 0; k < 256; ++k) codes[k] = static_cast<uint8_t>(field(file + 16, 32, 2, k));
}
void Q2KFormat::quantise(const float* x, uint8_t* codes, Row& by) {
  quantise_affine_groups<16>(x, 3, 15, codes, by.d, by.dmin, [&](int g, int s, int m) {
    by.sm[g] = static_cast<uint8_t>(s | m << 4);
  });
}

void Q3KFormat::read(const uint8_t* file, uint8_t* codes, Row& by) {
  by.d = half_at(file + 108);
  for (int g = 0; g < 16; ++g) {
    const int high = field(file + 104, 4, 2, g);
    by.s[g] = static_cast<int8_t>((field(file + 96, 8, 4, g) | high << 4) - 32);
  }
  for (int k = 0; k < 256; ++k) {
    codes[k] = static_cast<uint8_t>(field(file + 32, 32, 2, k) | field(file, 32, 1, k) << 2);
  }
}
void Q3KFormat::quantise(const float* x, uint8_t* codes, Row& by) {
  quantise_byte_scales<16>(
      -32, 31, by, [&](int g) { return fit_scale(x + 16 * g, 16, -4, 3); },
      [&](int g, float d) { scale_codes(x + 16 * g, 16, d, -4, 3, codes + 16 * g); });
}

void Q4KFormat::read(const uint8_t* file, uint8_t* codes, Row& by) {
  by.d = half_at(file);
  by.dmin = half_at(file + 2);
  read_six_bit_pairs(file + 4, by);
  for (int k = 0; k < 256; ++k) codes[k] = static_cast<uint8_t>(field(file + 16, 32, 4, k));
}
void Q4KFormat::quantise(const float* x, uint8_t* codes, Row& by) {
  quantise_six_bit(x, 15, codes, by);
}

void Q5KFormat::read(const uint8_t* file, uint8_t* codes, Row& by) {
  by.d = half_at(file);
  by.dmin = half_at(file + 2);
  read_six_bit_pairs(file + 4, by);
  for (int k = 0; k < 256; ++k) {
    codes[k] = static_cast<uint8_t>(field(file + 48, 32, 4, k) | field(file + 16, 32, 1, k) << 4);
  }
}
void Q5KFormat::quantise(const float* x, uint8_t* codes, Row& by) {
  quantise_six_bit(x, 31, codes, by);
}

void Q6KFormat::read(const uint8_t* file, uint8_t* codes, Row& by) {
  by.d = half_at(file + 208);
  std::memcpy(by.s, file + 192, 16);
  for (int k = 0; k < 256; ++k) {
    codes[k] = static_cast<uint8_t>(field(file, 64, 4, k) | field(file + 128, 32, 2, k) << 4);
  }
}
void Q6KFormat::quantise(const float* x, uint8_t* codes, Row& by) {
  quantise_byte_scales<16>(
      -128, 127, by, [&](int g) { return fit_scale(x + 16 * g, 16, -32, 31); },
      [&](int g, float d) { scale_codes(x + 16 * g, 16, d, -32, 31, codes + 16 * g); });
}

void Iq4XsFormat::read(const uint8_t* file, uint8_t* codes, Row& by) {
  by.d = half_at(file);
  const int high = file[2] | file[3] << 8;
  for (int g = 0; g < 8; ++g) {
    const int low = file[4 + g / 2] >> (g % 2 * 4) & 15;
    by.s[g] = static_cast<int8_t>((low | (high >> (2 * g) & 3) << 4) - 32);
  }
  for (int k = 0; k < 256; ++k) codes[k] = static_cast<uint8_t>(field(file + 8, 16, 4, k));
}
void Iq4XsFormat::quantise(const float* x, uint8_t* codes, Row& by) {
  quantise_byte_scales<8>(
      -32, 31, by, [&](int g) { return fit_table(x + 32 * g, 32, kIq4Nearest); },
      [&](int g, float d) { table_codes(x + 32 * g, 32, d, kIq4Nearest, codes + 32 * g); });
}

}  // namespace moe
