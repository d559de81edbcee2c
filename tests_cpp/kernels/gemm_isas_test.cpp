// The integer products of every instruction set beside those of one: the same bytes, for any number
// of rows, and where sums are the largest that codes and activations can give.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "moe/base/buffer.h"
#include "moe/base/rng.h"
#include "moe/kernels/table.h"
#include "moe/quant/format.h"

namespace moe {
namespace {

constexpr int kRows = 40;

float noise(uint64_t seed, uint64_t i) {
  return static_cast<float>(random_uniform(seed, i) * 2.0 - 1.0);
}

/// Two panels of small and large weights; where `fill` >= 0 it overwrites most of every block, the
/// codes: scales stand behind them.
Buffer panels_of(const FormatInfo& format, int64_t cols, int fill) {
  const int64_t blocks = format.blocks(cols), depth = blocks * format.depth;
  const int64_t bytes = format.panel_bytes(cols);
  Buffer panels(2 * bytes);
  std::vector<float> rows(static_cast<size_t>(kPanelRows * depth), 0.0f);
  for (int p = 0; p < 2; ++p) {
    for (int r = 0; r < kPanelRows; ++r) {
      for (int64_t k = 0; k < cols; ++k) {
        const auto i = static_cast<uint64_t>(r * depth + k);
        rows[i] = noise(static_cast<uint64_t>(p) + 7, i) * (p == 0 ? 30.0f : 0.02f);
      }
    }
    std::byte* panel = panels.data() + p * bytes;
    format.encode(rows.data(), depth, panel);
    for (int64_t b = 0; fill >= 0 && b < blocks; ++b) {
      std::memset(panel + b * format.block_bytes, fill,
                  static_cast<size_t>(format.block_bytes * 6 / 10));
    }
  }
  return panels;
}

/// Rows of noise, and some of the largest integers, of one sign and of both.
Buffer activations(const KernelTable& table, const ActivationLayout& layout, int64_t cols) {
  Buffer rows(kRows * layout.row_bytes);
  std::vector<float> x(static_cast<size_t>(cols));
  for (int r = 0; r < kRows; ++r) {
    for (int64_t k = 0; k < cols; ++k) {
      const float sign = r % 5 == 0 || (r + k / (r % 4 + 1)) % 2 == 0 ? 1.0f : -1.0f;
      x[static_cast<size_t>(k)] =
          r % 5 < 2 ? sign : noise(99 + static_cast<uint64_t>(r), static_cast<uint64_t>(k));
    }
    table.convert->activations[static_cast<int>(Dot::kU8S8)](x.data(), cols, layout,
                                                             rows.data() + r * layout.row_bytes);
  }
  return rows;
}

/// All rows in calls of `count`, the depth in parts of `part` columns.
std::vector<float> product(const KernelTable& table, Format format, int64_t cols,
                           const Buffer& panels, int64_t count, int64_t part) {
  const FormatInfo& info = format_info(format);
  const ActivationLayout layout = ActivationLayout::of(Dot::kU8S8, cols);
  const Buffer rows = activations(table, layout, cols);
  Buffer out(kGemmRows * kGemmOutputs * 4);
  std::vector<float> all;
  for (int64_t first = 0; first + count <= kRows; first += count) {
    GemmCall call{};
    for (int p = 0; p < 2; ++p) {
      call.panels[p] = panels.data() + p * info.panel_bytes(cols);
      call.next[p] = panels.data();
    }
    call.blocks = info.blocks(cols);
    call.x = rows.data() + first * layout.row_bytes;
    call.layout = &layout;
    call.count = count;
    call.out = reinterpret_cast<float*>(out.data());
    for (; call.begin < call.blocks; call.begin = call.end) {
      call.end = std::min(call.begin + part / info.depth, call.blocks);
      table.gemm->run[static_cast<int>(format)][static_cast<int>(Dot::kU8S8)](call);
    }
    all.insert(all.end(), call.out, call.out + count * kGemmOutputs);
  }
  return all;
}

class GemmIsas : public ::testing::TestWithParam<int> {};

TEST_P(GemmIsas, AllVectorsGiveTheSameBytes) {
  const auto format = static_cast<Format>(GetParam());
  if (format_info(format).dot != Dot::kU8S8) GTEST_SKIP() << "multiplies floats";
  int tables = 0;
  const KernelTable* const* table = all_kernels(&tables);
  for (const int64_t cols : {512, 1312}) {
    for (const int fill : {-1, 0, 255, 0x5a}) {
      const Buffer panels = panels_of(format_info(format), cols, fill);
      std::vector<float> want;
      // The first one, without vectors, rounds products of floats before it adds them.
      for (int t = tables - 1; t >= 1; --t) {
        if (!can_run(*table[t])) continue;
        for (const int64_t count : {int64_t{kRows}, int64_t{1}, int64_t{2}, int64_t{3}, int64_t{5},
                                    int64_t{8}, int64_t{13}}) {
          for (const int64_t part : {int64_t{kDepthBlock}, 4 * int64_t{kDepthBlock}}) {
            const std::vector<float> found = product(*table[t], format, cols, panels, count, part);
            if (want.empty()) want = found;
            ASSERT_EQ(std::memcmp(found.data(), want.data(), found.size() * 4), 0)
                << table[t]->name << ", " << count << " rows of " << cols << " in parts of " << part
                << ", codes of " << fill;
          }
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Format, GemmIsas, ::testing::Range(0, kFormatCount), [](const auto& i) {
  return std::string(format_info(static_cast<Format>(i.param)).name);
});

}  // namespace
}  // namespace moe
