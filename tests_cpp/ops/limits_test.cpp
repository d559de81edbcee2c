#include "moe/ops/limits.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "moe/base/check.h"
#include "moe/base/parallel.h"
#include "support/isas.h"

namespace moe {
namespace {

class Limit : public testing::EveryIsa {};
MOE_EVERY_ISA(Limit);

TEST_P(Limit, EveryFigureIsPositiveAndFinite) {
  const Limits limits = measure_limits(int64_t{4} << 20, 3);
  EXPECT_EQ(limits.threads, num_threads());
  const auto check = [](const Measured& figure, const char* what) {
    EXPECT_GT(figure.median, 0.0) << what;
    EXPECT_GE(figure.best, figure.median) << what;
    EXPECT_TRUE(std::isfinite(figure.best)) << what;
  };
  check(limits.read_bandwidth, "read bandwidth");
  for (int d = 0; d < kDotKinds; ++d) check(limits.multiply_peak[d], "multiply peak");
}

// A read that skipped something, or counted it twice, would be a bandwidth that does not exist.
TEST_P(Limit, TheReadLoopReadsEveryByteOnce) {
  const auto read = kernels().probe->read;
  std::vector<std::byte> data(static_cast<size_t>(3 * kProbeReadBytes));
  EXPECT_EQ(read(data.data(), 3 * kProbeReadBytes), 0u);
  uint32_t expected = 0;
  for (size_t word = 0; word < data.size() / 4; ++word) {
    const auto value = static_cast<uint32_t>(word * 2654435761u);
    std::memcpy(data.data() + 4 * word, &value, 4);
    expected += value;
  }
  EXPECT_EQ(read(data.data(), 3 * kProbeReadBytes), expected);
  EXPECT_EQ(read(data.data(), 0), 0u);
}

// The sums are known, so that the compiler cannot have dropped or folded any of the work: a float
// chain grows by one in every step, pairs of opposite signs stay at zero.
TEST_P(Limit, TheMultiplyLoopsComputeTheirSums) {
  const ProbeKernels& probe = *kernels().probe;
  for (const int64_t rounds : {0, 1, 5}) {
    const double steps =
        static_cast<double>(rounds * probe.operations[static_cast<int>(Dot::kF32)]) / 2;
    EXPECT_EQ(probe.multiply[static_cast<int>(Dot::kF32)](rounds), steps);
    EXPECT_EQ(probe.multiply[static_cast<int>(Dot::kBf16)](rounds), 0.0f);
    EXPECT_EQ(probe.multiply[static_cast<int>(Dot::kU8S8)](rounds), 0.0f);
  }
}

TEST(LimitProbe, RefusesWhatItCannotMeasure) {
  EXPECT_THROW(LimitProbe(1000), ValueError);
  EXPECT_THROW(measure_limits(int64_t{4} << 20, 0), ValueError);
  EXPECT_GE(LimitProbe().bytes(), int64_t{256} << 20);
}

}  // namespace
}  // namespace moe
