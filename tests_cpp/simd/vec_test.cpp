// Every word of the vector vocabulary, for every instruction set that this machine runs, against
// plain formulas.

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "moe/base/half.h"
#include "moe/base/rng.h"
#include "moe/kernels/table.h"
#include "moe/quant/fp8.h"
#include "simd/vec_check.h"

namespace moe {

#define MOE_ISA_ROW(isa, needs)    \
  namespace isa {                  \
  extern const VecCheck kVecCheck; \
  }
#include "moe_isas.inc"
#undef MOE_ISA_ROW

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
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

class Vec : public ::testing::TestWithParam<const VecCheck*> {
 protected:
  const VecCheck& vec() const { return *GetParam(); }
};
INSTANTIATE_TEST_SUITE_P(Isa, Vec, ::testing::ValuesIn(runnable()),
                         [](const auto& isa) { return std::string(isa.param->name); });

// Same bits, or both NaN (which NaN is the processor's choice).
::testing::AssertionResult same(float got, float want) {
  if (std::isnan(want) ? std::isnan(got)
                       : std::bit_cast<uint32_t>(got) == std::bit_cast<uint32_t>(want)) {
    return ::testing::AssertionSuccess();
  }
  return ::testing::AssertionFailure() << got << ", wanted " << want;
}

// Distance in units of the last place of `want`'s float.
double ulps(float got, double want) {
  const float rounded = static_cast<float>(want);
  int exponent;
  std::frexp(rounded, &exponent);
  return std::fabs(static_cast<double>(got) - want) /
         std::ldexp(1.0, std::max(exponent, -125) - 24);
}

// Largest error of a function over [low, high], in whatever `error` measures.
template <class Error>
double worst(VecCheck::Unary function, double low, double high, Error error) {
  constexpr int kPoints = 1 << 18;
  double largest = 0.0;
  float x[kLanes], y[kLanes];
  for (int i = 0; i < kPoints; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) {
      x[j] = static_cast<float>(low + (high - low) * (i + j) / (kPoints - 1));
    }
    function(x, y);
    for (int j = 0; j < kLanes; ++j) largest = std::max(largest, error(x[j], y[j]));
  }
  return largest;
}

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

TEST_P(Vec, ExpIsWithinTwoUlp) {
  const auto error = [](float x, float y) { return ulps(y, std::exp(static_cast<double>(x))); };
  EXPECT_LE(worst(vec().exp, -86.5, 88.72, error), 2.0);
  EXPECT_LE(worst(vec().exp, -1.0, 1.0, error), 2.0);
}

TEST_P(Vec, SigmoidAndSiluAreWithinFourUlp) {
  EXPECT_LE(worst(vec().sigmoid, -86.0, 86.0, [](float x, float y) { return ulps(y, sigmoid(x)); }),
            4.0);
  EXPECT_LE(
      worst(vec().silu, -80.0, 80.0, [](float x, float y) { return ulps(y, x * sigmoid(x)); }),
      4.0);
}

TEST_P(Vec, SoftplusIsWithinFourUlpAndKeepsItsLimits) {
  const auto error = [](float x, float y) {
    return ulps(y, std::max(x, 0.0f) + std::log1p(std::exp(-std::fabs(static_cast<double>(x)))));
  };
  EXPECT_LE(worst(vec().softplus, -86.0, 86.0, error), 4.0);
  EXPECT_LE(worst(vec().softplus, -2.0, 2.0, error), 4.0);
  const float x[kLanes] = {kInf, -kInf, kNan, 1e30f};
  float y[kLanes];
  vec().softplus(x, y);
  const float expected[] = {kInf, 0.0f, kNan, 1e30f};
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(same(y[i], expected[i])) << "softplus " << x[i];
}

TEST_P(Vec, TanhAndGeluAreCloseInAbsoluteTerms) {
  EXPECT_LE(worst(vec().tanh, -20.0, 20.0,
                  [](float x, float y) { return std::fabs(y - std::tanh(double{x})); }),
            2.5e-7);
  const auto gelu = [](double x) {
    return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
  };
  EXPECT_LE(worst(vec().gelu_tanh, -10.0, 10.0,
                  [&](float x, float y) { return std::fabs(y - gelu(x)) / (1.0 + std::fabs(x)); }),
            2.5e-7);
}

TEST_P(Vec, ElementaryFunctionsReachTheirLimits) {
  const float x[kLanes] = {0.0f, -0.0f, kInf, -kInf, kNan, 89.0f, -100.0f, 88.7f, 1e30f, -1e30f};
  float y[kLanes];
  vec().exp(x, y);
  const float exps[] = {1.0f, 1.0f, kInf, 0.0f, kNan, kInf, 0.0f};
  for (int i = 0; i < 7; ++i) EXPECT_TRUE(same(y[i], exps[i])) << "exp " << x[i];
  EXPECT_TRUE(std::isfinite(y[7]));
  vec().sigmoid(x, y);
  const float sigmoids[] = {0.5f, 0.5f, 1.0f, 0.0f, kNan, 1.0f};
  for (int i = 0; i < 6; ++i) EXPECT_TRUE(same(y[i], sigmoids[i])) << "sigmoid " << x[i];
  vec().silu(x, y);
  const float silus[] = {0.0f, -0.0f, kInf, 0.0f, kNan, 89.0f};
  for (int i = 0; i < 6; ++i) EXPECT_TRUE(same(y[i], silus[i])) << "silu " << x[i];
  EXPECT_EQ(y[9], 0.0f);
  vec().tanh(x, y);
  const float tanhs[] = {0.0f, 0.0f, 1.0f, -1.0f, kNan, 1.0f, -1.0f};
  for (int i = 0; i < 7; ++i) EXPECT_EQ(std::isnan(tanhs[i]), std::isnan(y[i]));
  for (int i : {0, 2, 3, 5, 6}) EXPECT_EQ(y[i], tanhs[i]) << "tanh " << x[i];
}

TEST_P(Vec, ArithmeticIsThatOfTheLanguage) {
  const float specials[] = {0.0f, -0.0f, 1.0f, -2.5f, 1e-40f, 3e38f, kInf, -kInf, kNan};
  std::vector<float> a, b;
  for (float p : specials) {
    for (float q : specials) {
      a.push_back(p);
      b.push_back(q);
    }
  }
  for (uint64_t i = 0; i < 1007; ++i) {
    a.push_back(std::bit_cast<float>(static_cast<uint32_t>(random_bits(1, i))));
    b.push_back(std::bit_cast<float>(static_cast<uint32_t>(random_bits(2, i))));
  }
  while (a.size() % kLanes != 0) {
    a.push_back(1.0f);
    b.push_back(2.0f);
  }
  float y[kLanes];
  for (size_t at = 0; at < a.size(); at += kLanes) {
    const float *pa = &a[at], *pb = &b[at];
    const auto expect = [&](const char* what, auto formula) {
      for (int i = 0; i < kLanes; ++i) {
        EXPECT_TRUE(same(y[i], formula(pa[i], pb[i]))) << what << " of " << pa[i] << ", " << pb[i];
      }
    };
    vec().add(pa, pb, y);
    expect("add", [](float p, float q) { return p + q; });
    vec().sub(pa, pb, y);
    expect("sub", [](float p, float q) { return p - q; });
    vec().mul(pa, pb, y);
    expect("mul", [](float p, float q) { return p * q; });
    vec().div(pa, pb, y);
    expect("div", [](float p, float q) { return p / q; });
    // The second operand where either is NaN or both are zero.
    vec().max(pa, pb, y);
    expect("max", [](float p, float q) { return p > q ? p : q; });
    vec().min(pa, pb, y);
    expect("min", [](float p, float q) { return p < q ? p : q; });
    vec().sqrt(pa, y);
    expect("sqrt", [](float p, float) { return std::sqrt(p); });
    vec().abs(pa, y);
    expect("abs", [](float p, float) { return std::fabs(p); });

    uint32_t below, equal, nan;
    vec().compare(pa, pb, &below, &equal, &nan, y);
    expect("select", [](float p, float q) { return p < q ? p : q; });
    for (int i = 0; i < kLanes; ++i) {
      EXPECT_EQ((below >> i) & 1u, pa[i] < pb[i] ? 1u : 0u);
      EXPECT_EQ((equal >> i) & 1u, pa[i] == pb[i] ? 1u : 0u);
      EXPECT_EQ((nan >> i) & 1u, std::isnan(pa[i]) ? 1u : 0u);
    }
    EXPECT_EQ((below | equal | nan) >> kLanes, 0u);
  }
}

// One rounding where the processor fuses, two in the scalar vectors: both within an ulp of the
// largest intermediate value.
TEST_P(Vec, FmaRoundsOnceOrTwice) {
  float a[kLanes], b[kLanes], c[kLanes], y[kLanes];
  for (uint64_t round = 0; round < 100; ++round) {
    for (uint64_t i = 0; i < kLanes; ++i) {
      a[i] = static_cast<float>(random_uniform(round, 3 * i) - 0.5);
      b[i] = static_cast<float>(random_uniform(round, 3 * i + 1) - 0.5);
      c[i] = static_cast<float>(random_uniform(round, 3 * i + 2) - 0.5);
    }
    vec().fma(a, b, c, y);
    for (int i = 0; i < kLanes; ++i) {
      const float twice = a[i] * b[i] + c[i];
      EXPECT_TRUE(y[i] == std::fma(a[i], b[i], c[i]) || y[i] == twice);
    }
  }
}

TEST_P(Vec, WidensEveryHalf) {
  uint16_t x[kLanes];
  float y[kLanes];
  for (uint32_t at = 0; at < 0x10000; at += kLanes) {
    for (uint32_t i = 0; i < kLanes; ++i) x[i] = static_cast<uint16_t>(at + i);
    vec().load_bf16(x, y);
    for (int i = 0; i < kLanes; ++i) ASSERT_TRUE(same(y[i], to_float(bf16{x[i]})));
    vec().load_f16(x, y);
    for (int i = 0; i < kLanes; ++i) ASSERT_TRUE(same(y[i], to_float(f16{x[i]})));
  }
}

TEST_P(Vec, WidensEveryInt8) {
  for (int at = -128; at < 128; at += kLanes) {
    int8_t x[kLanes];
    float y[kLanes];
    for (int i = 0; i < kLanes; ++i) x[i] = static_cast<int8_t>(at + i);
    vec().load_i8(x, y);
    for (int i = 0; i < kLanes; ++i) ASSERT_EQ(y[i], static_cast<float>(at + i));
  }
}

// Every bfloat16 and binary16 value, the halfway points above it and their neighbours; subnormals,
// overflow, infinities and NaN come with the range.
TEST_P(Vec, NarrowsAsTheScalarConversionDoes) {
  float x[kLanes];
  uint16_t y[kLanes];
  const auto check = [&] {
    vec().store_bf16(x, y);
    for (int i = 0; i < kLanes; ++i) {
      ASSERT_TRUE(same(to_float(bf16{y[i]}), to_float(to_bf16(x[i])))) << x[i];
    }
    vec().store_f16(x, y);
    for (int i = 0; i < kLanes; ++i) {
      ASSERT_TRUE(same(to_float(f16{y[i]}), to_float(to_f16(x[i])))) << x[i];
    }
  };
  for (uint32_t high = 0; high < 0x10000; ++high) {
    // Low halves around bf16's ties and, with bits 13 and 12, around f16's.
    const uint32_t lows[kLanes] = {0x0000, 0x0001, 0x0fff, 0x1000, 0x1001, 0x1fff, 0x2000, 0x2fff,
                                   0x3000, 0x3001, 0x7fff, 0x8000, 0x8001, 0xefff, 0xf000, 0xffff};
    for (int i = 0; i < kLanes; ++i) x[i] = std::bit_cast<float>((high << 16) | lows[i]);
    check();
  }
}

TEST_P(Vec, RoundsIntegersToEven) {
  const float x[kLanes] = {0.5f,  1.5f, 2.5f,   -0.5f,  -1.5f, -2.5f, 0.49999997f, 8388607.5f,
                           -1e6f, 1e9f, 126.5f, 2.0e9f, 0.0f,  -0.0f, 127.5f,      -127.5f};
  const int32_t want[kLanes] = {0,        2,          2,   0,          -2, -2, 0,   8388608,
                                -1000000, 1000000000, 126, 2000000000, 0,  0,  128, -128};
  int32_t y[kLanes];
  vec().round_to_i32(x, y);
  for (int i = 0; i < kLanes; ++i) EXPECT_EQ(y[i], want[i]) << x[i];
}

TEST_P(Vec, NarrowsToBytes) {
  int32_t x[kLanes];
  int8_t y[kLanes + 1];
  y[kLanes] = 99;
  for (int first = -128; first <= 112; first += 16) {
    for (int i = 0; i < kLanes; ++i) x[i] = first + (i * 7) % 16;
    vec().store_i8(x, y);
    for (int i = 0; i < kLanes; ++i) EXPECT_EQ(y[i], x[i]);
    EXPECT_EQ(y[kLanes], 99);
  }
}

// A page that may be touched, before one that may not.
struct GuardedPage {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  char* base = static_cast<char*>(
      mmap(nullptr, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  GuardedPage() { mprotect(base + page, page, PROT_NONE); }
  ~GuardedPage() { munmap(base, 2 * page); }
  float* last(int n) { return reinterpret_cast<float*>(base + page) - n; }
};

TEST_P(Vec, PartialLoadsAndStoresStayInside) {
  GuardedPage memory;
  float x[kLanes], y[kLanes];
  for (int i = 0; i < kLanes; ++i) x[i] = static_cast<float>(i + 1);
  for (int n = 0; n <= kLanes; ++n) {
    float* edge = memory.last(n);
    edge[-1] = -7.0f;
    vec().store_first(edge, x, n);
    EXPECT_EQ(edge[-1], -7.0f);
    for (int i = 0; i < n; ++i) EXPECT_EQ(edge[i], x[i]);
    vec().load_first(edge, n, y);
    for (int i = 0; i < kLanes; ++i) EXPECT_EQ(y[i], i < n ? x[i] : 0.0f) << n;
    // Lanes past n keep what was there.
    float row[kLanes + 1];
    std::fill_n(row, kLanes + 1, -1.0f);
    vec().store_first(row, x, n);
    for (int i = 0; i <= kLanes; ++i) EXPECT_EQ(row[i], i < n ? x[i] : -1.0f);
  }
}

TEST_P(Vec, ReducesInOneFixedTree) {
  float x[kLanes];
  for (uint64_t round = 0; round < 100; ++round) {
    float tree[kLanes], largest = -kInf;
    for (uint64_t i = 0; i < kLanes; ++i) {
      x[i] = tree[i] = static_cast<float>(random_uniform(round, i) - 0.5) * 1e6f;
      largest = std::max(largest, x[i]);
    }
    for (int half = kLanes / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) tree[i] += tree[i + half];
    }
    EXPECT_TRUE(same(vec().reduce_add(x), tree[0]));
    EXPECT_EQ(vec().reduce_max(x), largest);
  }
}

TEST_P(Vec, DotsOfFloatsAccumulate) {
  float acc[kLanes], w[kLanes], w0[kLanes], w1[kLanes];
  uint16_t pairs[2 * kLanes];
  for (uint64_t round = 0; round < 50; ++round) {
    const float x = static_cast<float>(random_uniform(round, 100) - 0.5);
    const bf16 b0 = to_bf16(x), b1 = to_bf16(2.0f * x + 0.1f);
    float start[kLanes];
    for (uint64_t i = 0; i < kLanes; ++i) {
      start[i] = static_cast<float>(random_uniform(round, i) - 0.5);
      w[i] = static_cast<float>(random_uniform(round, 16 + i) - 0.5);
      pairs[2 * i] = to_bf16(w[i]).bits;
      pairs[2 * i + 1] = to_bf16(1.0f - w[i]).bits;
      w0[i] = to_float(bf16{pairs[2 * i]});
      w1[i] = to_float(bf16{pairs[2 * i + 1]});
    }
    const uint32_t word = std::bit_cast<uint32_t>(x);
    std::copy_n(start, kLanes, acc);
    vec().dot_f32(acc, &word, w);
    for (int i = 0; i < kLanes; ++i) EXPECT_NEAR(acc[i], double{start[i]} + double{x} * w[i], 1e-7);

    const uint32_t pair = b0.bits | (static_cast<uint32_t>(b1.bits) << 16);
    std::copy_n(start, kLanes, acc);
    vec().dot_bf16(acc, &pair, pairs);
    for (int i = 0; i < kLanes; ++i) {
      const double want =
          double{start[i]} + double{to_float(b0)} * w0[i] + double{to_float(b1)} * w1[i];
      EXPECT_NEAR(acc[i], want, 4e-7);
    }
  }
}

// Extremes first: 255 · -127 and 255 · 127 in all four bytes pass where a 16-bit sum would
// saturate.
TEST_P(Vec, DotOfBytesIsExact) {
  uint8_t w[4 * kLanes];
  int32_t acc[kLanes];
  const auto check = [&](const int8_t (&x)[4]) {
    uint32_t word;
    std::memcpy(&word, x, 4);
    int32_t want[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      want[i] = acc[i];
      for (int j = 0; j < 4; ++j) want[i] += w[4 * i + j] * x[j];
    }
    vec().dot_u8s8(acc, &word, w);
    for (int i = 0; i < kLanes; ++i) ASSERT_EQ(acc[i], want[i]);
  };
  std::fill_n(acc, kLanes, 1000);
  std::fill_n(w, 4 * kLanes, uint8_t{255});
  check({127, 127, 127, 127});
  check({-127, -127, -127, -127});
  check({-128, -128, -128, -128});
  check({127, -128, -128, 127});
  for (uint64_t round = 0; round < 200; ++round) {
    for (uint64_t i = 0; i < 4 * kLanes; ++i) w[i] = static_cast<uint8_t>(random_bits(round, i));
    const uint64_t bits = random_bits(round, 1000);
    int8_t x[4];
    std::memcpy(x, &bits, 4);
    check(x);
  }
}

TEST_P(Vec, TakesBytesApart) {
  uint8_t x[64], low[64], high[64], flipped[64];
  for (int i = 0; i < 64; ++i) x[i] = static_cast<uint8_t>(i * 37 + 11);
  x[0] = 0x80;
  x[1] = 0xff;
  vec().nibbles(x, low, high, flipped);
  float bytes[64], pairs[32];
  vec().widen(x, bytes, pairs);
  for (int i = 0; i < 64; ++i) {
    EXPECT_EQ(low[i], x[i] & 15);
    EXPECT_EQ(high[i], x[i] >> 4);
    EXPECT_EQ(flipped[i], x[i] ^ 0xa5);
    EXPECT_EQ(bytes[i % 4 * 16 + i / 4], static_cast<float>(x[i]));
  }
  for (int i = 0; i < 32; ++i) {
    const auto half = static_cast<uint16_t>(x[2 * i] | (x[2 * i + 1] << 8));
    EXPECT_TRUE(same(pairs[i % 2 * 16 + i / 2], to_float(bf16{half})));
  }
}

TEST_P(Vec, FieldsOfBytesAndTinyFloats) {
  for (int start = 0; start < 256; start += 64) {
    uint8_t x[64], left[64], right[64];
    uint16_t low[32], high[32];
    int32_t wide[16], narrow[16];
    for (int i = 0; i < 64; ++i) x[i] = static_cast<uint8_t>(start + i);
    vec().fields(x, left, right, low, high);
    vec().widen_bytes(x, wide, narrow);
    for (int i = 0; i < 64; ++i) {
      EXPECT_EQ(left[i], ((x[i] << 2) & 0x3c) | x[i]);
      EXPECT_EQ(right[i], ((x[i] >> 1) & 0x55) | x[i]);
      const float got = to_float(bf16{(i / 8 % 2 == 0 ? low : high)[i / 16 * 8 + i % 8]});
      EXPECT_TRUE(same(got, e4m3_to_float(x[i]))) << static_cast<int>(x[i]);
    }
    for (int i = 0; i < 16; ++i) {
      EXPECT_EQ(wide[i], x[i]);
      EXPECT_EQ(narrow[i], static_cast<int8_t>(x[i]));
    }
  }
}

}  // namespace
}  // namespace moe
