#include "moe/ops/compute.h"

#include <gtest/gtest.h>

#include "moe/base/check.h"

namespace moe {
namespace {

TEST(Compute, NamesAndTheirDotProducts) {
  EXPECT_EQ(parse_compute("exact"), Compute::kExact);
  EXPECT_EQ(parse_compute("fast"), Compute::kFast);
  EXPECT_EQ(parse_compute("auto"), Compute::kAuto);
  EXPECT_THROW(parse_compute("quick"), ValueError);
  const bool tiles = kernels().gemm->rows_together;
  for (int f = 0; f < kFormatCount; ++f) {
    const auto format = static_cast<Format>(f);
    EXPECT_EQ(choose_dot(format, Compute::kExact, 4096, 4096), Dot::kF32);
    const bool parts = tiles && format == Format::kF16;
    EXPECT_EQ(choose_dot(format, Compute::kFast, 8, 8),
              parts ? Dot::kBf16x2 : format_info(format).dot);
  }
  EXPECT_EQ(choose_dot(Format::kF16, Compute::kAuto, 512, 512), Dot::kF32);
  EXPECT_EQ(choose_dot(Format::kF32, Compute::kAuto, 4096, 4096), Dot::kF32);
  EXPECT_EQ(choose_dot(Format::kBf16, Compute::kAuto, 768, 2048), Dot::kBf16);
  EXPECT_EQ(choose_dot(Format::kBf16, Compute::kAuto, 2048, 512), Dot::kF32);
  EXPECT_EQ(choose_dot(Format::kBf16, Compute::kAuto, 2049, 512), Dot::kBf16);
  EXPECT_EQ(choose_dot(Format::kBf16, Compute::kAuto, 256, 1024), Dot::kF32);
  EXPECT_EQ(choose_dot(Format::kBf16, Compute::kAuto, 512, 1024), Dot::kBf16);
  EXPECT_EQ(choose_dot(Format::kInt8, Compute::kAuto, 8, 8), Dot::kU8S8);
}

// Every instruction set serves every pair that choose_dot can name.
TEST(Compute, NoHoleInAnyTable) {
  int count = 0;
  const KernelTable* const* tables = all_kernels(&count);
  const char* own = kernels().name;
  for (int i = 0; i < count; ++i) {
    if (!can_run(*tables[i])) continue;
    set_isa(tables[i]->name);
    for (int f = 0; f < kFormatCount; ++f) {
      for (const Compute compute : {Compute::kExact, Compute::kAuto}) {
        const Dot dot = choose_dot(static_cast<Format>(f), compute, 2048, 2048);
        EXPECT_NE(tables[i]->gemm->run[f][static_cast<int>(dot)], nullptr)
            << tables[i]->name << " " << format_info(static_cast<Format>(f)).name;
        EXPECT_NE(tables[i]->convert->activations[static_cast<int>(dot)], nullptr);
      }
    }
  }
  set_isa(own);
}

}  // namespace
}  // namespace moe
