#include "moe/quant/grid_fit.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace moe {

namespace {

constexpr int kColumns = 256;

constexpr int power(int base, int exponent) {
  return exponent == 0 ? 1 : base * power(base, exponent - 1);
}

// The nearest point of a grid. Each coordinate is rounded to a level of the grid alone; where that
// is no point of the grid, the points around it are compared.
template <const auto& kGrid>
class NearestPoints {
 public:
  static constexpr int kWidth = kGrid.kWidth, kPoints = kGrid.kPoints;
  static constexpr int kLevels = kWidth == 8 ? 3 : 8;

  static const NearestPoints& of_grid() {
    static const NearestPoints points;
    return points;
  }

  const float* values(int point) const { return &values_[static_cast<size_t>(point * kWidth)]; }

  int find(const float* x) const {
    int key = 0;
    for (int j = 0; j < kWidth; ++j) {
      int level = 0;
      for (int l = 0; l + 1 < kLevels; ++l) level += x[j] > border_[l] ? 1 : 0;
      key = key * kLevels + level;
    }
    const uint16_t* near = &near_[static_cast<size_t>(key * kNear)];
    if (near[1] == kNone) return near[0];
    int best = near[0];
    float least = INFINITY;
    for (int i = 0; i < kNear; ++i) {
      const float* value = values(near[i]);
      float distance = 0.0f;
      for (int j = 0; j < kWidth; ++j) distance += (x[j] - value[j]) * (x[j] - value[j]);
      if (distance < least) {
        least = distance;
        best = near[i];
      }
    }
    return best;
  }

 private:
  static constexpr int kNear = 16;
  static constexpr uint16_t kNone = 0xffff;
  static constexpr int kKeys = power(kLevels, kWidth);

  NearestPoints() : values_(kPoints * kWidth), near_(static_cast<size_t>(kKeys) * kNear) {
    std::vector<int> levels;
    for (int p = 0; p < kPoints; ++p) {
      for (int j = 0; j < kWidth; ++j) {
        const int value = kGrid.byte(p, j) - 128;
        values_[static_cast<size_t>(p * kWidth + j)] = static_cast<float>(value);
        levels.push_back(value);
      }
    }
    std::sort(levels.begin(), levels.end());
    levels.erase(std::unique(levels.begin(), levels.end()), levels.end());
    for (size_t l = 0; l + 1 < levels.size(); ++l) {
      border_[l] = static_cast<float>(levels[l] + levels[l + 1]) / 2.0f;
    }
    // A point's distance from each level, then every combination of them.
    std::vector<uint32_t> squares(static_cast<size_t>(kWidth * kLevels * kPoints));
    for (int j = 0; j < kWidth; ++j) {
      for (int l = 0; l < kLevels; ++l) {
        for (int p = 0; p < kPoints; ++p) {
          const int off = kGrid.byte(p, j) - 128 - levels[static_cast<size_t>(l)];
          squares[static_cast<size_t>((j * kLevels + l) * kPoints + p)] =
              static_cast<uint32_t>(off * off);
        }
      }
    }
    std::vector<uint32_t> order(kPoints);
    for (int key = 0; key < kKeys; ++key) {
      std::fill(order.begin(), order.end(), 0u);
      for (int j = kWidth - 1, rest = key; j >= 0; --j, rest /= kLevels) {
        const size_t at = static_cast<size_t>((j * kLevels + rest % kLevels) * kPoints);
        for (size_t p = 0; p < kPoints; ++p) order[p] += squares[at + p];
      }
      for (size_t p = 0; p < kPoints; ++p) order[p] = order[p] << 11 | static_cast<uint32_t>(p);
      std::nth_element(order.begin(), order.begin() + kNear, order.end());
      std::sort(order.begin(), order.begin() + kNear);
      uint16_t* near = &near_[static_cast<size_t>(key * kNear)];
      for (int i = 0; i < kNear; ++i) near[i] = static_cast<uint16_t>(order[i] & 2047);
      if (order[0] >> 11 == 0) near[1] = kNone;
    }
  }

  std::vector<float> values_;
  std::vector<uint16_t> near_;
  float border_[kLevels - 1];
};

// Codes and signs of `count` columns from `first` on under a scale.
template <const auto& kGrid, bool kEven>
GridSums choose_signed(const float* x, int first, int count, float scale, GridRow& row) {
  const auto& points = NearestPoints<kGrid>::of_grid();
  constexpr int kWidth = kGrid.kWidth;
  const float inverse = 1.0f / scale;
  float xq = 0.0f, qq = 0.0f;
  for (int begin = first; begin < first + count; begin += 8) {
    float size[8];
    int signs = 0, least = 0;
    for (int j = 0; j < 8; ++j) {
      size[j] = std::fabs(x[begin + j]) * inverse;
      signs |= (x[begin + j] < 0.0f ? 1 : 0) << j;
      if (size[j] < size[least]) least = j;
    }
    if (kEven && __builtin_parity(static_cast<unsigned>(signs)) != 0) {
      size[least] = -size[least];
      signs ^= 1 << least;
    }
    row.signs[begin / 8] = static_cast<uint8_t>(signs);
    for (int k = 0; k < 8; k += kWidth) {
      const int code = points.find(size + k);
      row.code[(begin + k) / kWidth] = static_cast<uint16_t>(code);
      const float* value = points.values(code);
      for (int j = 0; j < kWidth; ++j) {
        xq += size[k + j] * value[j];
        qq += value[j] * value[j];
      }
    }
  }
  return {static_cast<double>(xq) * scale, qq};
}

// The same for IQ1: `together` columns are moved up by 1 or down, of the eight that are a grid's 1.
GridSums choose_moved(const float* x, int first, int count, int together, float scale,
                      GridRow& row) {
  const auto& points = NearestPoints<kIq1Grid>::of_grid();
  const float inverse = 1.0f / scale;
  GridSums sums{};
  for (int begin = first; begin < first + count; begin += together) {
    float xq[2] = {}, qq[2] = {};
    uint16_t code[2][4];
    for (int up = 0; up < 2; ++up) {
      const float move = up != 0 ? 1.0f : -1.0f;
      for (int k = 0; k < together; k += 8) {
        float moved[8];
        for (int j = 0; j < 8; ++j) moved[j] = x[begin + k + j] * inverse - move;
        code[up][k / 8] = static_cast<uint16_t>(points.find(moved));
        const float* value = points.values(code[up][k / 8]);
        for (int j = 0; j < 8; ++j) {
          xq[up] += (moved[j] + move) * (value[j] + move);
          qq[up] += (value[j] + move) * (value[j] + move);
        }
      }
    }
    const int up = qq[1] - 2.0f * xq[1] < qq[0] - 2.0f * xq[0] ? 1 : 0;
    for (int k = 0; k < together / 8; ++k) {
      row.code[begin / 8 + k] = code[up][k];
      row.signs[begin / 8 + k] = static_cast<uint8_t>(up);
    }
    sums.xq += static_cast<double>(xq[up]) * scale;
    sums.qq += qq[up];
  }
  return sums;
}

// A group's own scale: of several, each followed by Σ x q / Σ q² of its points, the best.
template <class Choose>
float own_scale(const GridKind& kind, const float* x, int first, GridRow& row, Choose choose) {
  float largest = 0.0f;
  for (int k = first; k < first + kind.group; ++k) largest = std::max(largest, std::fabs(x[k]));
  double best = 0.0;
  float scale = 0.0f;
  const auto consider = [&](float tried) {
    if (!(tried > 0.0f) || !std::isfinite(1.0f / tried)) return;
    const GridSums sums = choose(first, tried, row);
    if (sums.xq > 0.0 && sums.xq * sums.xq > best * sums.qq) {
      best = sums.xq * sums.xq / sums.qq;
      scale = static_cast<float>(sums.xq / sums.qq);
    }
  };
  consider(largest / kind.least);
  for (float top = kind.first; top <= kind.last; top += kind.by) consider(largest / top);
  consider(scale);
  return scale;
}

template <class Choose>
void fit_row(const GridKind& kind, const float* x, GridRow& row, Choose choose) {
  const int groups = kColumns / kind.group;
  float own[16], top = 0.0f;
  for (int g = 0; g < groups; ++g) {
    own[g] = own_scale(kind, x, g * kind.group, row, choose);
    top = std::max(top, own[g]);
  }
  row = {};
  row.d = to_f16(top / (static_cast<float>(2 * kind.steps - 1) * kind.unit));
  // The scale of the block again once the steps are chosen, and the steps with that.
  for (int pass = 0; pass < 2; ++pass) {
    const float unit = to_float(row.d) * kind.unit;
    if (!(unit > 0.0f) || !std::isfinite(unit)) break;
    double xq = 0.0, qq = 0.0;
    for (int g = 0; g < groups; ++g) {
      if (own[g] == 0.0f) continue;  // nothing there, or a format's padding
      const float near = (own[g] / unit - 1.0f) / 2.0f;
      const int middle = static_cast<int>(
          std::clamp(std::nearbyint(near), 0.0f, static_cast<float>(kind.steps - 1)));
      double least = INFINITY;
      int step = middle;
      const auto sums_of = [&](int s) {
        return choose(g * kind.group, unit * static_cast<float>(2 * s + 1), row);
      };
      for (int s = std::max(middle - 1, 0); s <= std::min(middle + 1, kind.steps - 1); ++s) {
        const double scale = static_cast<double>(unit) * (2 * s + 1);
        const GridSums sums = sums_of(s);
        const double error = scale * (scale * sums.qq - 2.0 * sums.xq);
        if (error < least) {
          least = error;
          step = s;
        }
      }
      row.step[g] = static_cast<uint8_t>(step);
      const GridSums sums = sums_of(step);
      const double times = static_cast<double>(kind.unit) * (2 * step + 1);
      xq += times * sums.xq;
      qq += times * times * sums.qq;
    }
    if (qq > 0.0) row.d = to_f16(static_cast<float>(xq / qq));
  }
}

}  // namespace

template <const auto& kGrid, bool kEven>
void fit_signed_grid(const GridKind& kind, const float* x, GridRow& row) {
  fit_row(kind, x, row, [&](int first, float scale, GridRow& to) {
    return choose_signed<kGrid, kEven>(x, first, kind.group, scale, to);
  });
}
template void fit_signed_grid<kIq2XxsGrid, true>(const GridKind&, const float*, GridRow&);
template void fit_signed_grid<kIq2XsGrid, true>(const GridKind&, const float*, GridRow&);
template void fit_signed_grid<kIq2SGrid, false>(const GridKind&, const float*, GridRow&);
template void fit_signed_grid<kIq3XxsGrid, true>(const GridKind&, const float*, GridRow&);
template void fit_signed_grid<kIq3SGrid, false>(const GridKind&, const float*, GridRow&);

void fit_moved_grid(const GridKind& kind, int together, const float* x, GridRow& row) {
  fit_row(kind, x, row, [&](int first, float scale, GridRow& to) {
    return choose_moved(x, first, kind.group, together, scale, to);
  });
}

}  // namespace moe
