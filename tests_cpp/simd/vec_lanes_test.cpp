// The words of the vector vocabulary that move lanes about and compare integers.

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "moe/base/rng.h"
#include "moe/kernels/table.h"
#include "simd/vec_check.h"

namespace moe {

#define MOE_ISA_ROW(isa, needs)    \
  namespace isa {                  \
  extern const VecCheck kVecCheck; \
  }
#include "moe_isas.inc"
#undef MOE_ISA_ROW

namespace {

constexpr int kLanes = 16;

std::vector<const VecCheck*> runnable() {
  const VecCheck* const all[] = {
#define MOE_ISA_ROW(isa, needs) &isa::kVecCheck,
#include "moe_isas.inc"
#undef MOE_ISA_ROW
  };
  int count = 0;
  const KernelTable* const* tables = all_kernels(&count);
  std::vector<const VecCheck*> result;
  for (int i = 0; i < count; ++i) {
    if (can_run(*tables[i])) result.push_back(all[i]);
  }
  return result;
}

class VecLanes : public ::testing::TestWithParam<const VecCheck*> {
 protected:
  const VecCheck& vec() const { return *GetParam(); }
};
INSTANTIATE_TEST_SUITE_P(Isa, VecLanes, ::testing::ValuesIn(runnable()),
                         [](const auto& isa) { return std::string(isa.param->name); });

TEST_P(VecLanes, ComparesIntegersWithTheirSign) {
  for (uint64_t round = 0; round < 200; ++round) {
    int32_t a[kLanes], b[kLanes], y[6 * kLanes];
    for (uint64_t i = 0; i < kLanes; ++i) {
      a[i] = static_cast<int32_t>(random_bits(round, i));
      b[i] = i % 5 == 0 ? a[i] : static_cast<int32_t>(random_bits(round, 100 + i));
    }
    a[3] = INT32_MIN;
    b[4] = INT32_MAX;
    uint32_t below, equal;
    vec().integers(a, b, y, &below, &equal);
    for (int i = 0; i < kLanes; ++i) {
      EXPECT_EQ(y[i], std::max(a[i], b[i]));
      EXPECT_EQ(y[16 + i], std::min(a[i], b[i]));
      EXPECT_EQ(y[32 + i], a[i] ^ b[i]);
      EXPECT_EQ(y[48 + i], a[i] >> 3);
      EXPECT_EQ(y[64 + i], std::min(a[i], b[i]));
      EXPECT_EQ(static_cast<uint32_t>(y[80 + i]),
                static_cast<uint32_t>(a[i]) * static_cast<uint32_t>(b[i]));
      EXPECT_EQ((below >> i) & 1u, a[i] < b[i] ? 1u : 0u);
      EXPECT_EQ((equal >> i) & 1u, a[i] == b[i] ? 1u : 0u);
    }
  }
}

TEST_P(VecLanes, MovesLanesWhereTheFormulasSay) {
  float a[kLanes], b[kLanes], swapped[4 * kLanes], paired[8 * kLanes];
  int32_t blended[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    a[i] = static_cast<float>(i);
    b[i] = static_cast<float>(100 + i);
  }
  vec().move_lanes(a, b, swapped, paired, blended);
  for (int d = 0; d < 4; ++d) {
    const int distance = 1 << d, block = distance >= 4 ? 16 : 4;
    for (int i = 0; i < kLanes; ++i) EXPECT_EQ(swapped[16 * d + i], a[i ^ distance]);
    for (const int set : {0, distance}) {
      std::vector<float> want;
      for (int start = 0; start < kLanes; start += block) {
        for (const float* from : {a, b}) {
          for (int i = start; i < start + block; ++i) {
            if ((i & distance) == set) want.push_back(from[i]);
          }
        }
      }
      const float* got = paired + 32 * d + (set != 0 ? 16 : 0);
      EXPECT_EQ(want, std::vector<float>(got, got + kLanes)) << distance;
    }
  }
  for (int i = 0; i < kLanes; ++i) {
    const float want = ((kBlendPattern >> i) & 1u) != 0 ? b[i] : a[i];
    EXPECT_EQ(std::bit_cast<float>(blended[i]), want);
  }
}

TEST_P(VecLanes, CompressesTheChosenLanesToTheFront) {
  int32_t x[kLanes];
  for (int i = 0; i < kLanes; ++i) x[i] = 7 * i + 1;
  for (uint32_t lanes = 0; lanes < 0x10000; ++lanes) {
    int32_t y[kLanes + 1];
    std::fill_n(y, kLanes + 1, -1);
    vec().store_compressed(y, x, lanes);
    int at = 0;
    for (int i = 0; i < kLanes; ++i) {
      if (((lanes >> i) & 1u) != 0) {
        ASSERT_EQ(y[at++], x[i]);
      }
    }
    ASSERT_EQ(y[kLanes], -1);  // sixteen may be overwritten, no more
  }
}

TEST_P(VecLanes, MakesMasksOfBytesAndCounts) {
  for (uint64_t round = 0; round < 100; ++round) {
    uint8_t x[kLanes];
    uint32_t want = 0;
    for (uint32_t i = 0; i < kLanes; ++i) {
      x[i] = static_cast<uint8_t>(random_bits(round, i) % 3 * 127);
      want |= (x[i] != 0 ? 1u : 0u) << i;
    }
    EXPECT_EQ(vec().nonzero_bytes(x), want);
  }
  for (int n = 0; n <= kLanes; ++n) EXPECT_EQ(vec().first_mask(n), (1u << n) - 1u);
}

TEST_P(VecLanes, MakesMasksOfBits) {
  for (uint32_t lanes = 0; lanes < 0x10000; ++lanes) ASSERT_EQ(vec().lane_mask(lanes), lanes);
}

TEST_P(VecLanes, MultipliesPairsOfBytes) {
  if (vec().pair_products == nullptr) GTEST_SKIP() << "multiplies four bytes at once";
  for (uint64_t round = 0; round < 400; ++round) {
    int8_t x[4];
    uint8_t small[64], bytes[64];
    int32_t acc[kLanes], steps[kLanes], found[kLanes], unused[kLanes];
    int16_t step[2 * kLanes];
    for (uint32_t j = 0; j < 4; ++j) {
      // Half of the rounds: what gives the largest sums.
      const int any = static_cast<int>(random_bits(round, j) % 255) - 127;
      x[j] = static_cast<int8_t>(round % 4 == 0 ? 127 : round % 4 == 1 ? -127 : any);
    }
    for (uint32_t i = 0; i < 64; ++i) {
      const uint64_t any = random_bits(round, 10 + i);
      small[i] = static_cast<uint8_t>(round % 8 < 4 ? 129 : any % 130);
      bytes[i] = static_cast<uint8_t>(round % 8 < 4 ? 128 : any % 256);
    }
    for (uint32_t i = 0; i < kLanes; ++i) {
      acc[i] = static_cast<int32_t>(random_bits(round, 100 + i) % 2001) - 1000;
      step[2 * i] = static_cast<int16_t>(random_bits(round, 200 + i) % 16384);
      step[2 * i + 1] = static_cast<int16_t>(-step[2 * i] / 2);
    }
    std::memcpy(steps, step, 64);
    uint32_t word;
    std::memcpy(&word, x, 4);
    const auto check = [&](auto weight) {
      for (int i = 0; i < kLanes; ++i) {
        int32_t want = acc[i];
        for (int half = 0; half < 2; ++half) {
          const int at = 4 * i + 2 * half;
          const int pair = x[2 * half] * weight(at) + x[2 * half + 1] * weight(at + 1);
          want += pair + (pair + 1) * step[2 * i + half];
        }
        ASSERT_EQ(found[i], want) << "round " << round << ", lane " << i;
      }
    };
    vec().pair_products(acc, &word, small, steps, found, unused);
    check([&](int i) { return static_cast<int>(small[i]); });
    vec().pair_products(acc, &word, bytes, steps, unused, found);
    check([&](int i) { return static_cast<int>(static_cast<int8_t>(bytes[i])); });
  }
}

TEST_P(VecLanes, BytesLookUpEight) {
  uint8_t table[16];
  for (uint32_t i = 0; i < 16; ++i) table[i] = static_cast<uint8_t>(random_bits(1, i));
  for (uint64_t round = 0; round < 100; ++round) {
    int32_t words[kLanes];
    for (uint32_t i = 0; i < kLanes; ++i)
      words[i] = static_cast<int32_t>(random_bits(round + 2, i));
    uint8_t x[64], same[64], found[64];
    std::memcpy(x, words, 64);
    vec().bytes(words, table, same, found);
    for (int i = 0; i < 64; ++i) {
      EXPECT_EQ(same[i], x[i]);
      EXPECT_EQ(found[i], table[x[i] & 7]);
    }
  }
}

TEST_P(VecLanes, BoundedExpIsExp) {
  for (int at = 0; at < 200000; at += kLanes) {
    float x[kLanes], y[kLanes], z[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      x[i] = static_cast<float>(-86.5 + (86.5 + 88.3) * (at + i) / 200016.0);
    }
    vec().exp_bounded(x, y);
    vec().exp(x, z);
    for (int i = 0; i < kLanes; ++i) ASSERT_EQ(y[i], z[i]) << x[i];
  }
}

TEST_P(VecLanes, ExpOfNegativeIsExpToTheBit) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const float special[] = {0.0f,    -0.0f, -kInf,  -86.5f,  -86.50001f, -87.0f,
                           -104.0f, -1e9f, -3e38f, -1e-38f, -1e-45f,    -kInf};
  for (int at = 0; at < 200000; at += kLanes) {
    float x[kLanes], y[kLanes], z[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      x[i] = at == 0 && i < 12 ? special[i] : static_cast<float>(-100.0 * (at + i) / 200016.0);
    }
    vec().exp_of_negative(x, y);
    vec().exp(x, z);
    ASSERT_EQ(std::memcmp(y, z, sizeof(y)), 0) << x[0];
  }
  float nan[kLanes];
  for (float& x : nan) x = std::numeric_limits<float>::quiet_NaN();
  vec().exp_of_negative(nan, nan);
  for (const float y : nan) EXPECT_TRUE(std::isnan(y));
}

}  // namespace
}  // namespace moe
