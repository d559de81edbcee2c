#include "moe/quant/ggml_ternary.h"

#include <gtest/gtest.h>

#include <vector>

#include "moe/base/buffer.h"

namespace moe {
namespace {

TEST(GgmlTernary, FiveDigitsStandInAByte) {
  uint8_t file[54] = {};
  // ggml's encoding of digits d0 … d4: ceil((81 d0 + 27 d1 + 9 d2 + 3 d3 + d4) · 256 / 243).
  const int number = 81 * 2 + 27 * 0 + 9 * 1 + 3 * 2 + 1;
  file[0] = static_cast<uint8_t>((number * 256 + 242) / 243);
  uint8_t codes[256];
  f16 d;
  Tq1Format::read(file, codes, d);
  const int want[5] = {2, 0, 1, 2, 1};
  for (int i = 0; i < 5; ++i) EXPECT_EQ(codes[32 * i], want[i]) << i;
}

TEST(GgmlTernary, TernaryWeightsStayAsTheyAre) {
  std::vector<float> rows(kPanelRows * 256);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = 0.5f * static_cast<float>(i * 7 % 3) - 0.5f;
  Buffer panel(Tq2Format::kBlockBytes);
  Tq2Format::encode(rows.data(), 256, panel.data());
  for (int r = 0; r < kPanelRows; ++r) {
    for (int k = 0; k < 256; ++k) {
      EXPECT_EQ(Tq2Format::at(panel.data(), 256, r, k), rows[static_cast<size_t>(r * 256 + k)]);
    }
  }
}

}  // namespace
}  // namespace moe
