#pragma once
// The grids of ggml's IQ types: the points that a code stands for, four or eight values each, as
// the bytes that the dot product gets.

#include <cstdint>

namespace moe {

/// Byte j of a point, counted from the lowest, is value j + 128.
template <class Word, int count>
struct Grid {
  static constexpr int kPoints = count;
  static constexpr int kWidth = sizeof(Word);
  Word points[count];

  int byte(int point, int j) const { return static_cast<int>(points[point] >> (8 * j) & 255); }
};

/// IQ1_S and IQ1_M: eight times −1, 0 or 1.
extern const Grid<uint64_t, 2048> kIq1Grid;
/// IQ2: sizes 8, 25, 43; their signs are kept apart.
extern const Grid<uint64_t, 256> kIq2XxsGrid;
extern const Grid<uint64_t, 512> kIq2XsGrid;
extern const Grid<uint64_t, 1024> kIq2SGrid;
/// IQ3: sizes 4, 12, 20, 28, 36, 44, 52, 62 (IQ3_XXS); 1, 3, … 15 (IQ3_S).
extern const Grid<uint32_t, 256> kIq3XxsGrid;
extern const Grid<uint32_t, 512> kIq3SGrid;

}  // namespace moe
