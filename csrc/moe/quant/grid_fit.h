#pragma once
// Floats as points of a grid: the nearest point, and the scales of (nearly) least squared error.

#include <cstdint>

#include "moe/quant/grid_block.h"

namespace moe {

/// Σ x q and Σ q² of a group's weights x and their values q without the scale.
struct GridSums {
  double xq, qq;
};

/// What is known of a type beside its grid.
struct GridKind {
  int group;    // columns that share a step
  int steps;    // how many there are: 1, 3, … 2 · steps − 1
  float unit;   // of a scale: d · (2 s + 1) · unit
  float least;  // the largest weight over the scale, where all weights of a group are alike
  float first, last, by;  // the same, tried one after the other
};

/// d, the steps, codes and signs of a row of 256 weights for a type with sizes and signs, the
/// grids of IQ2 and IQ3. kEven: the number of negative signs among eight columns is even.
template <const auto& kGrid, bool kEven>
void fit_signed_grid(const GridKind& kind, const float* x, GridRow& row);
/// The same for IQ1; `together` columns are moved up or down as one.
void fit_moved_grid(const GridKind& kind, int together, const float* x, GridRow& row);

}  // namespace moe
