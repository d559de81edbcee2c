#include "moe/quant/ggml_iq.h"

#include <bit>

#include "moe/quant/ggml_fields.h"
#include "moe/quant/grid_fit.h"

namespace moe {

namespace {

uint32_t word_of(const uint8_t* file) {
  uint32_t word;
  std::memcpy(&word, file, 4);
  return word;
}
uint16_t half_word_of(const uint8_t* file) {
  uint16_t word;
  std::memcpy(&word, file, 2);
  return word;
}

// Seven signs, and the eighth that makes their number even.
uint8_t even_signs(unsigned seven) {
  return static_cast<uint8_t>(seven | (std::popcount(seven) & 1) << 7);
}

// Words of four sign codes and a step.
void read_sign_words(const uint8_t* file, int stride, GridRow& row) {
  for (int g = 0; g < 8; ++g) {
    const uint32_t word = word_of(file + g * stride);
    for (int i = 0; i < 4; ++i) row.signs[4 * g + i] = even_signs(word >> (7 * i) & 127);
    row.step[g] = static_cast<uint8_t>(word >> 28);
  }
}

void read_nibble_steps(const uint8_t* file, int count, GridRow& row) {
  for (int g = 0; g < count; ++g) row.step[g] = static_cast<uint8_t>(field(file, 1, 4, g));
}

}  // namespace

void Iq2XxsFormat::read(const uint8_t* file, GridRow& row) {
  row.d = half_at(file);
  for (int i = 0; i < 32; ++i) row.code[i] = file[2 + i / 4 * 8 + i % 4];
  read_sign_words(file + 6, 8, row);
}
void Iq2XxsFormat::quantise(const float* x, GridRow& row) {
  static constexpr GridKind kKind = {32, 16, 0.125f, 8.0f, 34.0f, 82.0f, 4.0f};
  fit_signed_grid<kIq2XxsGrid, true>(kKind, x, row);
}

void Iq2XsFormat::read(const uint8_t* file, GridRow& row) {
  row.d = half_at(file);
  for (int i = 0; i < 32; ++i) {
    const unsigned word = half_word_of(file + 2 + 2 * i);
    row.code[i] = static_cast<uint16_t>(word & 511);
    row.signs[i] = even_signs(word >> 9);
  }
  read_nibble_steps(file + 66, 16, row);
}
void Iq2XsFormat::quantise(const float* x, GridRow& row) {
  static constexpr GridKind kKind = {16, 16, 0.125f, 8.0f, 34.0f, 76.0f, 3.5f};
  fit_signed_grid<kIq2XsGrid, true>(kKind, x, row);
}

void Iq2SFormat::read(const uint8_t* file, GridRow& row) {
  row.d = half_at(file);
  for (int i = 0; i < 32; ++i) {
    row.code[i] = static_cast<uint16_t>(file[2 + i] | field(file + 66, 1, 2, i) << 8);
  }
  std::memcpy(row.signs, file + 34, 32);
  read_nibble_steps(file + 74, 16, row);
}
void Iq2SFormat::quantise(const float* x, GridRow& row) {
  static constexpr GridKind kKind = {16, 16, 0.125f, 8.0f, 34.0f, 76.0f, 3.5f};
  fit_signed_grid<kIq2SGrid, false>(kKind, x, row);
}

void Iq3XxsFormat::read(const uint8_t* file, GridRow& row) {
  row.d = half_at(file);
  for (int i = 0; i < 64; ++i) row.code[i] = file[2 + i];
  read_sign_words(file + 66, 4, row);
}
void Iq3XxsFormat::quantise(const float* x, GridRow& row) {
  static constexpr GridKind kKind = {32, 16, 0.25f, 4.0f, 44.0f, 84.0f, 3.5f};
  fit_signed_grid<kIq3XxsGrid, true>(kKind, x, row);
}

void Iq3SFormat::read(const uint8_t* file, GridRow& row) {
  row.d = half_at(file);
  for (int i = 0; i < 64; ++i) {
    row.code[i] = static_cast<uint16_t>(file[2 + i] | field(file + 66, 1, 1, i) << 8);
  }
  std::memcpy(row.signs, file + 74, 32);
  read_nibble_steps(file + 106, 8, row);
}
void Iq3SFormat::quantise(const float* x, GridRow& row) {
  static constexpr GridKind kKind = {32, 16, 1.0f, 1.0f, 11.0f, 20.0f, 0.75f};
  fit_signed_grid<kIq3SGrid, false>(kKind, x, row);
}

void Iq1SFormat::read(const uint8_t* file, GridRow& row) {
  row.d = half_at(file);
  for (int g = 0; g < 8; ++g) {
    const unsigned word = half_word_of(file + 34 + 2 * g);
    row.step[g] = static_cast<uint8_t>(word >> 12 & 7);
    for (int i = 4 * g; i < 4 * g + 4; ++i) {
      row.code[i] = static_cast<uint16_t>(file[2 + i] | (word >> (3 * (i % 4)) & 7) << 8);
      row.signs[i] = static_cast<uint8_t>(word >> 15 ^ 1);
    }
  }
}
void Iq1SFormat::quantise(const float* x, GridRow& row) {
  static constexpr GridKind kKind = {32, 8, 0.125f, 9.0f, 8.0f, 20.0f, 1.0f};
  fit_moved_grid(kKind, 32, x, row);
}

void Iq1MFormat::read(const uint8_t* file, GridRow& row) {
  row.d = {};
  for (int i = 0; i < 32; ++i) {
    const int nibble = field(file + 32, 1, 4, i);
    row.code[i] = static_cast<uint16_t>(file[i] | (nibble & 7) << 8);
    row.signs[i] = static_cast<uint8_t>(nibble >> 3 ^ 1);
  }
  for (int g = 0; g < 16; ++g) {
    const unsigned word = half_word_of(file + 48 + g / 4 * 2);
    row.step[g] = static_cast<uint8_t>(word >> (g % 4 * 3) & 7);
    if (g % 4 == 0) row.d.bits = static_cast<uint16_t>(row.d.bits | (word >> 12) << g);
  }
}
void Iq1MFormat::quantise(const float* x, GridRow& row) {
  static constexpr GridKind kKind = {16, 8, 0.125f, 9.0f, 8.0f, 20.0f, 1.0f};
  fit_moved_grid(kKind, 8, x, row);
}

}  // namespace moe
