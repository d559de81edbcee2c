#include "moe/base/half.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace moe {
namespace {

TEST(Half, EveryHalfSurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = to_float(f16{static_cast<uint16_t>(bits)});
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(to_float(to_f16(value))));
    } else {
      EXPECT_EQ(to_f16(value).bits, bits);
    }
    const float wide = to_float(bf16{static_cast<uint16_t>(bits)});
    if (std::isnan(wide)) {
      EXPECT_TRUE(std::isnan(to_float(to_bf16(wide))));
    } else {
      EXPECT_EQ(to_bf16(wide).bits, bits);
    }
  }
}

// Against the compiler's own conversion, halfway cases included.
TEST(Half, RoundsToNearestEven) {
  for (uint32_t bits = 0; bits < 0x7c00; ++bits) {
    const float low = to_float(f16{static_cast<uint16_t>(bits)});
    const float high = to_float(f16{static_cast<uint16_t>(bits + 1)});
    if (std::isinf(high)) continue;
    const float middle = 0.5f * (low + high);
    EXPECT_EQ(to_f16(middle).bits, bits + (bits & 1));
    EXPECT_EQ(to_f16(std::nextafter(middle, high)).bits, bits + 1);
    EXPECT_EQ(to_f16(std::nextafter(middle, low)).bits, bits);
    EXPECT_EQ(to_f16(-middle).bits, 0x8000u | (bits + (bits & 1)));
  }
  EXPECT_EQ(to_f16(65519.0f).bits, 0x7bff);
  EXPECT_EQ(to_f16(65520.0f).bits, 0x7c00);
  EXPECT_EQ(to_bf16(1.00390625f).bits, 0x3f80);  // halfway between 1 and 1.0078125: even wins
  EXPECT_EQ(to_bf16(std::numeric_limits<float>::max()).bits, 0x7f80);
}

}  // namespace
}  // namespace moe
