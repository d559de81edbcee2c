#include "moe/ops/grouped_gemm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "moe/base/check.h"
#include "moe/base/rng.h"
#include "support/isas.h"
#include "support/reference.h"
#include "support/tolerance.h"

namespace moe {
namespace {

using testing::normal;

struct Case {
  int64_t experts, rows, cols;
  std::vector<int64_t> offsets;
};

PackedWeight packed(Format format, int64_t experts, int64_t rows, int64_t cols) {
  PackedWeight weight({format}, experts, rows, cols);
  for (int64_t e = 0; e < experts; ++e) {
    const auto values = normal(rows * cols, static_cast<uint64_t>(100 + e), 1.0 / std::sqrt(cols));
    weight.fill(e, values.data(), DType::kF32);
  }
  return weight;
}

std::vector<float> run(const std::vector<float>& x, const PackedWeight& weight,
                       const std::vector<int64_t>& offsets, Compute compute) {
  const int64_t count = offsets.back();
  std::vector<float> out(static_cast<size_t>(count * weight.rows()));
  grouped_matmul({x.data(), count, weight.cols()}, weight, offsets.data(), compute,
                 {out.data(), count, weight.rows()});
  return out;
}

std::vector<float> row_of(const std::vector<float>& matrix, int64_t row, int64_t cols) {
  return {matrix.begin() + row * cols, matrix.begin() + (row + 1) * cols};
}

// The definition: doubles, the weights as they are once packed.
std::vector<double> reference(const std::vector<float>& x, const PackedWeight& weight,
                              const std::vector<int64_t>& offsets) {
  std::vector<double> out(static_cast<size_t>(offsets.back() * weight.rows()));
  std::vector<float> w(static_cast<size_t>(weight.rows() * weight.cols()));
  for (int64_t e = 0; e < weight.experts(); ++e) {
    weight.unpack(e, w.data());
    for (int64_t r = offsets[e]; r < offsets[e + 1]; ++r) {
      for (int64_t n = 0; n < weight.rows(); ++n) {
        double sum = 0.0;
        for (int64_t k = 0; k < weight.cols(); ++k) {
          sum += static_cast<double>(x[r * weight.cols() + k]) * w[n * weight.cols() + k];
        }
        out[r * weight.rows() + n] = sum;
      }
    }
  }
  return out;
}

class GroupedMatmul : public testing::EveryIsa {};

TEST_P(GroupedMatmul, AgreesWithTheDefinition) {
  const Case cases[] = {
      {1, 1, 1, {0, 1}},         {3, 17, 33, {0, 0, 5, 6}},  // an empty expert, one row, several
      {2, 31, 130, {0, 29, 29}},                             // all rows on one expert
      {2, 64, 512, {0, 13, 26}},                             // one whole depth block, ragged tiles
      {1, 40, 1037, {0, 3}},                                 // several depth blocks and a tail
      {1, 32, 64, {0, 300}},                                 // more rows than one pass
      {2, 16, 8, {0, 0, 0}},                                 // nothing
  };
  for (int f = 0; f < kFormatCount; ++f) {
    for (const Case& c : cases) {
      const PackedWeight weight = packed(static_cast<Format>(f), c.experts, c.rows, c.cols);
      const auto x = normal(c.offsets.back() * c.cols, 7);
      const auto expected = reference(x, weight, c.offsets);
      for (const Compute compute : {Compute::kExact, Compute::kFast}) {
        const auto out = run(x, weight, c.offsets, compute);
        const Dot dot = choose_dot(static_cast<Format>(f), compute, 1, 1);
        EXPECT_LE(testing::nmse(out, expected), testing::product_bound(dot))
            << format_info(static_cast<Format>(f)).name << " [" << c.experts << ", " << c.rows
            << ", " << c.cols << "] dot " << static_cast<int>(dot);
      }
    }
  }
}

/// The rows `which` give the same bytes alone, in every format.
void expect_alone(int64_t rows, int64_t cols, const std::vector<int64_t>& offsets,
                  const std::vector<int64_t>& which) {
  const auto experts = static_cast<int64_t>(offsets.size()) - 1;
  for (int f = 0; f < kFormatCount; ++f) {
    const PackedWeight weight = packed(static_cast<Format>(f), experts, rows, cols);
    const auto x = normal(offsets.back() * cols, 3);
    for (const Compute compute : {Compute::kExact, Compute::kFast}) {
      const auto all = run(x, weight, offsets, compute);
      for (const int64_t r : which) {
        std::vector<int64_t> alone;
        for (const int64_t begin : offsets) alone.push_back(begin > r ? 1 : 0);
        EXPECT_EQ(run(row_of(x, r, cols), weight, alone, compute), row_of(all, r, rows))
            << format_info(static_cast<Format>(f)).name << " row " << r;
      }
    }
  }
}

TEST_P(GroupedMatmul, ARowsBytesDependOnNothingElse) {
  std::vector<int64_t> every(29);
  std::iota(every.begin(), every.end(), 0);
  expect_alone(48, 700, {0, 11, 29}, every);
}

// So many rows do not stay in a cache: the depth is cut, and each part meets all columns.
TEST_P(GroupedMatmul, PartsOfTheDepthAddUpToTheSameBytes) {
  expect_alone(40, 2300, {0, 290}, {0, 100, 255, 256, 289});
}

// Scales in two levels: 128 columns add up to an integer that is rounded once, the largest ones
// too.
TEST_P(GroupedMatmul, StepsAddUpExactly) {
  struct Kind {
    Format format;
    size_t d, dmin;  // where a block of a file has them; 0: no minima
  };
  constexpr int64_t kRows = 40, kCols = 256, kCount = 29;
  for (const Kind& kind :
       {Kind{Format::kQ2K, 80, 82}, Kind{Format::kQ3K, 108, 0}, Kind{Format::kQ4K, 0, 2},
        Kind{Format::kQ5K, 0, 2}, Kind{Format::kQ6K, 208, 0}, Kind{Format::kIq4Xs, 0, 0}}) {
    const FormatInfo& info = format_info(kind.format);
    const auto size = static_cast<size_t>(info.file_bytes);
    std::vector<uint8_t> blocks(kRows * size);
    for (size_t i = 0; i < blocks.size(); ++i) {
      const size_t row = i / size;  // the first rows hold the smallest and the largest fields
      blocks[i] = row == 0 || row == 2 ? 0 : row == 1 ? 255 : random_bits(9, i) & 255;
    }
    if (kind.format == Format::kQ6K) std::fill_n(&blocks[2 * size + 192], 16, uint8_t{0x80});
    for (size_t row = 0; row < kRows; ++row) {
      const uint8_t one[2] = {0x00, 0x3c};
      std::copy_n(one, 2, &blocks[row * size + kind.d]);
      if (kind.dmin != 0) std::fill_n(&blocks[row * size + kind.dmin], 2, uint8_t{0});
    }
    PackedWeight weight({kind.format}, 1, kRows, kCols);
    weight.fill_blocks(0, {0, kRows}, reinterpret_cast<const std::byte*>(blocks.data()));
    std::vector<float> w(kRows * kCols), x(kCount * kCols);
    weight.unpack(0, w.data());
    for (int64_t i = 0; i < kCount * kCols; ++i) {  // integers whose scale is 1
      const int64_t row = i / kCols;
      const auto any = static_cast<float>(random_bits(10, static_cast<uint64_t>(i)) % 255) - 127;
      x[i] = row == 0 || i % kScaleBlock == 5 ? 127.0f : row == 1 ? -127.0f : any;
    }
    std::vector<float> expected(kCount * kRows);
    for (int64_t i = 0; i < kCount * kRows; ++i) {
      int64_t sum[2] = {};
      for (int64_t k = 0; k < kCols; ++k) {
        sum[k / kScaleBlock] += static_cast<int64_t>(x[i / kRows * kCols + k]) *
                                static_cast<int64_t>(w[i % kRows * kCols + k]);
      }
      expected[i] = static_cast<float>(sum[0]) + static_cast<float>(sum[1]);
    }
    for (const int64_t count : {int64_t{1}, int64_t{2}, int64_t{5}, int64_t{16}, kCount}) {
      const std::vector<float> rows(x.begin(), x.begin() + count * kCols);
      const std::vector<float> same(expected.begin(), expected.begin() + count * kRows);
      EXPECT_EQ(run(rows, weight, {0, count}, Compute::kFast), same) << info.name << " " << count;
    }
  }
}

TEST_P(GroupedMatmul, BytesDoNotDependOnThreads) {
  const PackedWeight weight = packed(Format::kInt8, 3, 200, 96);
  const auto x = normal(40 * 96, 4);
  const int before = num_threads();
  set_num_threads(1);
  const auto one = run(x, weight, {0, 10, 11, 40}, Compute::kAuto);
  for (const int threads : {2, 3, 5}) {
    set_num_threads(threads);
    EXPECT_EQ(run(x, weight, {0, 10, 11, 40}, Compute::kAuto), one);
  }
  set_num_threads(before);
}

TEST_P(GroupedMatmul, DamageStaysInItsRow) {
  const PackedWeight weight = packed(Format::kInt8, 1, 20, 300);
  for (const float bad : {std::nanf(""), INFINITY}) {
    for (const Compute compute : {Compute::kExact, Compute::kFast}) {
      auto x = normal(5 * 300, 4);
      const auto clean = run(x, weight, {0, 5}, compute);
      x[2 * 300 + 17] = bad;
      const auto out = run(x, weight, {0, 5}, compute);
      for (int64_t i = 0; i < 5 * 20; ++i) {
        if (i / 20 == 2) {
          EXPECT_FALSE(std::isfinite(out[i]));
        } else {
          EXPECT_EQ(out[i], clean[i]);
        }
      }
    }
  }
}

MOE_EVERY_ISA(GroupedMatmul);

TEST(Matmul, OfSeveralMatricesAddsTheirBiases) {
  const PackedWeight weight = packed(Format::kF32, 1, 9, 5);
  const PackedWeight bytes = packed(Format::kQ8_0, 1, 20, 5);
  const auto x = normal(3 * 5, 1);
  const auto bias = normal(9, 2);
  std::vector<float> plain(27), biased(27), beside(60), alone(60);
  const MatrixView<const float> rows(x.data(), 3, 5);
  matmul_each(rows,
              {{&weight, nullptr, {plain.data(), 3, 9}},
               {&bytes, nullptr, {beside.data(), 3, 20}},
               {&weight, bias.data(), {biased.data(), 3, 9}}},
              Compute::kAuto);
  for (int i = 0; i < 27; ++i) EXPECT_EQ(biased[i], plain[i] + bias[i % 9]);
  matmul_each(rows, {{&bytes, nullptr, {alone.data(), 3, 20}}}, Compute::kAuto);
  EXPECT_EQ(beside, alone);
}

TEST(GroupedMatmulErrors, NameWhatWasGiven) {
  const PackedWeight weight = packed(Format::kF32, 2, 4, 8);
  const std::vector<float> x(3 * 8);
  EXPECT_THROW(run(x, weight, {0, 4, 3}, Compute::kAuto), ValueError);
  EXPECT_THROW(run(x, weight, {1, 2, 3}, Compute::kAuto), ValueError);
  float out[12];
  const int64_t offsets[] = {0, 1, 2};
  EXPECT_THROW(grouped_matmul({x.data(), 3, 8}, weight, offsets, Compute::kAuto, {out, 3, 4}),
               ValueError);
  EXPECT_THROW(grouped_matmul({x.data(), 2, 7}, weight, offsets, Compute::kAuto, {out, 2, 4}),
               ValueError);
  EXPECT_THROW(matmul_each({x.data(), 3, 8}, {{&weight, nullptr, {out, 3, 4}}}, Compute::kAuto),
               ValueError);
}

}  // namespace
}  // namespace moe
