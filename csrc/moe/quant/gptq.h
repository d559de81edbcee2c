#pragma once
// GPTQ (Frantar et al., arXiv 2210.17323): columns are rounded one after another, and what rounding
// one of them does to the outputs is taken back by the columns that are still to come.
//
// Definition, for a row w of the weights and H = sum over inputs of x xᵀ, (H + λI)⁻¹ = Uᵀ U:
//   for i in order:  q_i = round(w_i);  w_j -= (w_i - q_i) / U_ii · U_ij  for all j after i
//
// Cost: n³ / 3 + n³ / 6 multiply-adds for U, once for all rows; n² / 2 for each row.

#include <cstdint>

#include "moe/quant/format.h"

namespace moe {

/// U as above, float [n, n] row-major, its lower triangle zero. `hessian` is [n, n], symmetric (its
/// lower triangle is read), `order` [n] says which of its rows and columns stands at i; λ is `damp`
/// times the mean of the diagonal (section 3.3). In double and blocked by columns; threads share
/// the rows. False, and `factor` is then undefined, if H + λI is not positive definite.
bool inverse_factor(const double* hessian, int64_t n, const int32_t* order, double damp,
                    float* factor);

/// Writes a panel by the definition above. `rows` [16, depth] are the weights, zero beyond `cols`;
/// `factor` and `order` are those of `inverse_factor` with n = cols.
///
/// Scales are those that `encode` finds for the weights as they came. With `refit`, which needs the
/// natural order and a format without a trailer, a block's scales are found when its first column
/// is reached, for the weights as corrected by then. The format must have `round`. `work` holds
/// gptq_work(depth) floats, `panel` panel_bytes(cols).
inline constexpr int64_t gptq_work(int64_t depth) {
  return kPanelRows * (depth + 2 * kDeepestBlock);
}
void gptq_panel(const FormatInfo& format, const float* rows, int64_t cols, int64_t depth,
                const float* factor, const int32_t* order, bool refit, float* work,
                std::byte* panel) noexcept;

}  // namespace moe
