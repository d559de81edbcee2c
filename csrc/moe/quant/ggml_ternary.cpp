#include "moe/quant/ggml_ternary.h"

#include "moe/quant/fit.h"
#include "moe/quant/ggml_fields.h"

namespace moe {

template <class Self>
void TernaryBlock<Self>::quantise(const float* x, uint8_t* codes, f16& d) {
  d = to_f16(fit_ternary(x, 256));
  scale_codes(x, 256, to_float(d), -1, 1, codes);
}
template struct TernaryBlock<Tq1Format>;
template struct TernaryBlock<Tq2Format>;

void Tq1Format::read(const uint8_t* file, uint8_t* codes, f16& d) {
  d = half_at(file + 52);
  static constexpr uint8_t kPowers[5] = {1, 3, 9, 27, 81};
  // Digit i is what a multiplication by 3^i modulo 256 brings to the top.
  const auto digits = [&](const uint8_t* bytes, int count, int each) {
    for (int i = 0; i < each; ++i) {
      for (int j = 0; j < count; ++j) {
        const auto top = static_cast<uint8_t>(bytes[j] * kPowers[i]);
        *codes++ = static_cast<uint8_t>(top * 3 >> 8);
      }
    }
  };
  digits(file, 32, 5);
  digits(file + 32, 16, 5);
  digits(file + 48, 4, 4);
}

void Tq2Format::read(const uint8_t* file, uint8_t* codes, f16& d) {
  d = half_at(file + 64);
  for (int k = 0; k < 256; ++k) codes[k] = static_cast<uint8_t>(field(file, 32, 2, k));
}

}  // namespace moe
