#include "moe/quant/ggml_simple.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "moe/quant/fp8.h"
#include "moe/quant/ggml_fields.h"

namespace moe {

namespace {

// The nibbles of a block of 32, and with `high` the bits above them, one for each column.
void read_nibbles(const uint8_t* file, uint8_t* codes) {
  for (int k = 0; k < 32; ++k) codes[k] = static_cast<uint8_t>(field(file, 16, 4, k));
}
void read_fives(const uint8_t* high, const uint8_t* low, uint8_t* codes) {
  read_nibbles(low, codes);
  for (int k = 0; k < 32; ++k) codes[k] |= static_cast<uint8_t>((high[k / 8] >> (k % 8) & 1) << 4);
}

// ggml's rounding: d = largest / low, q = trunc(x / d − low + 0.5).
void quantise_symmetric(const float* x, int low, uint8_t* codes, f16& d) {
  const float step = signed_largest(x, 32) / static_cast<float>(low);
  const float inverse = step != 0.0f ? 1.0f / step : 0.0f;
  d = to_f16(step);
  for (int k = 0; k < 32; ++k) {
    const float q = x[k] * inverse + (0.5f - static_cast<float>(low));
    codes[k] = static_cast<uint8_t>(std::min(std::max(0.0f, q), -2.0f * low - 1.0f));
  }
}
void quantise_affine(const float* x, int levels, uint8_t* codes, HalfScaleMin::Row& by) {
  float low = x[0], high = x[0];
  for (int k = 1; k < 32; ++k) {
    low = std::min(low, x[k]);
    high = std::max(high, x[k]);
  }
  const float step = (high - low) / static_cast<float>(levels);
  const float inverse = step != 0.0f ? 1.0f / step : 0.0f;
  by = {to_f16(step), to_f16(low)};
  for (int k = 0; k < 32; ++k) {
    const float q = (x[k] - low) * inverse + 0.5f;
    codes[k] = static_cast<uint8_t>(std::min(std::max(0.0f, q), static_cast<float>(levels)));
  }
}

}  // namespace

void Q8_0Format::read(const uint8_t* file, uint8_t* codes, f16& d) {
  d = half_at(file);
  for (int k = 0; k < 32; ++k) codes[k] = file[2 + k] ^ 0x80;
}
void Q8_0Format::quantise(const float* x, uint8_t* codes, f16& d) {
  const float step = std::fabs(signed_largest(x, 32)) / 127.0f;
  const float inverse = step != 0.0f ? 1.0f / step : 0.0f;
  d = to_f16(step);
  for (int k = 0; k < 32; ++k) {
    const float q = std::min(std::max(-127.0f, std::round(x[k] * inverse)), 127.0f);
    codes[k] = static_cast<uint8_t>(static_cast<int>(q) + kOffset);
  }
}

void Q4_0Format::read(const uint8_t* file, uint8_t* codes, f16& d) {
  d = half_at(file);
  read_nibbles(file + 2, codes);
}
void Q4_0Format::quantise(const float* x, uint8_t* codes, f16& d) {
  quantise_symmetric(x, -8, codes, d);
}

void Q4_1Format::read(const uint8_t* file, uint8_t* codes, Row& by) {
  by = {half_at(file), half_at(file + 2)};
  read_nibbles(file + 4, codes);
}
void Q4_1Format::quantise(const float* x, uint8_t* codes, Row& by) {
  quantise_affine(x, 15, codes, by);
}

void Q5_0Format::read(const uint8_t* file, uint8_t* codes, f16& d) {
  d = half_at(file);
  read_fives(file + 2, file + 6, codes);
}
void Q5_0Format::quantise(const float* x, uint8_t* codes, f16& d) {
  quantise_symmetric(x, -16, codes, d);
}

void Q5_1Format::read(const uint8_t* file, uint8_t* codes, Row& by) {
  by = {half_at(file), half_at(file + 2)};
  read_fives(file + 4, file + 8, codes);
}
void Q5_1Format::quantise(const float* x, uint8_t* codes, Row& by) {
  quantise_affine(x, 31, codes, by);
}

void Mxfp4Format::read(const uint8_t* file, uint8_t* codes, uint8_t& exponent) {
  exponent = file[0];
  read_nibbles(file + 1, codes);
}
void Mxfp4Format::quantise(const float* x, uint8_t* codes, uint8_t& exponent) {
  const float largest = std::fabs(signed_largest(x, 32));
  const int shared = largest > 0.0f ? std::clamp(std::ilogb(largest) + 125, 0, 254) : 127;
  exponent = static_cast<uint8_t>(shared);
  const float half = std::ldexp(0.5f, shared - 127);
  for (int k = 0; k < 32; ++k)
    codes[k] = static_cast<uint8_t>(Codes::nearest(x[k] / half, kOffset));
}

void Nvfp4Format::read(const uint8_t* file, uint8_t* codes, Row& by) {
  std::memcpy(by.e, file, 4);
  for (int k = 0; k < 64; ++k) codes[k] = static_cast<uint8_t>(field(file + 4, 8, 4, k));
}
void Nvfp4Format::quantise(const float* x, uint8_t* codes, Row& by) {
  static constexpr NearestTable kNearest({-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12});
  static constexpr uint8_t kCodes[15] = {15, 14, 13, 12, 11, 10, 9, 0, 1, 2, 3, 4, 5, 6, 7};
  for (int g = 0; g < 4; ++g, x += 16, codes += 16) {
    // The largest value becomes 6, 4 or something between: the best of the scales there.
    const float largest = std::fabs(signed_largest(x, 16));
    const int last = std::min(nearest_e4m3(largest / 4.0f) + 1, 126);
    double least = std::numeric_limits<double>::infinity();
    for (int code = std::max(nearest_e4m3(largest / 6.0f) - 1, 0); code <= last; ++code) {
      const float half = TinyFloatScales<4>::value(code);
      const float inverse = half > 0.0f ? 1.0f / half : 0.0f;
      double error = 0.0;
      for (int k = 0; k < 16; ++k) {
        const double e = x[k] - half * kNearest.value[NearestTable::index(x[k] * inverse)];
        error += e * e;
      }
      if (!(error < least)) continue;
      least = error;
      by.e[g] = static_cast<uint8_t>(code);
      for (int k = 0; k < 16; ++k) {
        codes[k] = kCodes[kNearest.code[NearestTable::index(x[k] * inverse)]];
      }
    }
  }
}

void Q1_0Format::read(const uint8_t* file, uint8_t* codes, f16& d) {
  d = half_at(file);
  for (int k = 0; k < 128; ++k) codes[k] = static_cast<uint8_t>(field(file + 2, 1, 1, k));
}
void Q1_0Format::quantise(const float* x, uint8_t* codes, f16& d) {
  // Σ |x| / n is the scale of least error.
  float sum = 0.0f;
  for (int k = 0; k < 128; ++k) {
    sum += std::fabs(x[k]);
    codes[k] = x[k] >= 0.0f ? 1 : 0;
  }
  d = to_f16(sum / 128.0f);
}

void Iq4NlFormat::read(const uint8_t* file, uint8_t* codes, f16& d) {
  d = half_at(file);
  read_nibbles(file + 2, codes);
}
void Iq4NlFormat::quantise(const float* x, uint8_t* codes, f16& d) {
  d = to_f16(fit_table(x, 32, kIq4Nearest));
  table_codes(x, 32, to_float(d), kIq4Nearest, codes);
}

}  // namespace moe
