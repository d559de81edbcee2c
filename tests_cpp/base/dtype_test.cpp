#include "moe/base/dtype.h"

#include <gtest/gtest.h>

#include "moe/base/half.h"

namespace moe {
namespace {

TEST(DType, ReadsAnElementOfEachType) {
  const float values[] = {0.0f, -1.5f, 65504.0f};
  f16 halves[3];
  bf16 brains[3];
  for (int i = 0; i < 3; ++i) {
    halves[i] = to_f16(values[i]);
    brains[i] = to_bf16(values[i]);
  }
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(load_float(values, DType::kF32, i), values[i]);
    EXPECT_EQ(load_float(halves, DType::kF16, i), values[i]);
    EXPECT_EQ(load_float(brains, DType::kBf16, i), i == 2 ? 65536.0f : values[i]);
  }
  EXPECT_EQ(dtype_bytes(DType::kF32), sizeof(float));
  EXPECT_EQ(dtype_bytes(DType::kF16), sizeof(f16));
  EXPECT_EQ(dtype_bytes(DType::kBf16), sizeof(bf16));
}

}  // namespace
}  // namespace moe
