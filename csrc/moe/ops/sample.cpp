#include "moe/ops/sample.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "moe/base/check.h"
#include "moe/base/parallel.h"
#include "moe/base/rng.h"
#include "moe/kernels/table.h"

namespace moe {

namespace {

/// Room of one row's draw, allocated before any thread starts.
struct Draw {
  std::vector<float> mass;  // e^((logit - top) / temperature): 1 for the best; 0 once filtered out
  std::vector<float> best;  // the top_k largest, or whatever has to be sorted for top_p
};

void keep_top_k(int64_t k, Draw& draw) {
  if (k == 0 || k >= static_cast<int64_t>(draw.mass.size())) return;
  draw.best.resize(static_cast<size_t>(k));
  std::partial_sort_copy(draw.mass.begin(), draw.mass.end(), draw.best.begin(), draw.best.end(),
                         std::greater<>());
  const float least = draw.best.back();
  for (float& m : draw.mass) m = m < least ? 0.0f : m;
}

/// Keeps a token if the tokens that rank above it hold less than p of the mass.
void keep_top_p(double p, Draw& draw) {
  if (p >= 1.0) return;
  double total = 0.0;
  for (const float m : draw.mass) total += m;
  // All tokens below this bound together hold at most 1 - p: none of them stays, none is sorted.
  const double bound = (1.0 - p) * total / static_cast<double>(draw.mass.size());
  draw.best.clear();
  for (const float m : draw.mass) {
    if (m >= bound && m > 0.0f) draw.best.push_back(m);
  }
  // A nucleus is mostly a few tokens: the order is made piece by piece, as far as it is needed.
  auto sorted = draw.best.begin();
  double above = 0.0;
  size_t kept = 0;
  for (int64_t piece = 256; kept == 0 || above < p * total; piece *= 4) {
    const auto end = draw.best.end() - sorted > piece ? sorted + piece : draw.best.end();
    if (end != draw.best.end()) std::nth_element(sorted, end, draw.best.end(), std::greater<>());
    std::sort(sorted, end, std::greater<>());
    for (; sorted != end && (kept == 0 || above < p * total); ++sorted, ++kept) above += *sorted;
    if (end == draw.best.end()) break;
    sorted = end;
  }
  // The last one that stays may be tied: of equals the lower ids stay.
  const float least = draw.best[kept - 1];
  const auto first_equal = std::lower_bound(
      draw.best.begin(), draw.best.begin() + static_cast<int64_t>(kept), least, std::greater<>());
  auto ties = static_cast<int64_t>(draw.best.begin() + static_cast<int64_t>(kept) - first_equal);
  for (float& m : draw.mass) {
    if (m == least && ties > 0) {
      --ties;
    } else if (m <= least) {
      m = 0.0f;
    }
  }
}

int64_t draw_one(const Draw& draw, double uniform) {
  double total = 0.0;
  for (const float m : draw.mass) total += m;
  const double target = uniform * total;
  double passed = 0.0;
  int64_t last = 0;
  for (size_t i = 0; i < draw.mass.size(); ++i) {
    if (draw.mass[i] == 0.0f) continue;
    passed += draw.mass[i];
    last = static_cast<int64_t>(i);
    if (passed > target) break;
  }
  return last;
}

void check_rule(const SampleRule& rule) {
  MOE_CHECK(rule.temperature >= 0.0 && std::isfinite(rule.temperature), "[sample] temperature is ",
            rule.temperature, "; a finite number >= 0 is required");
  MOE_CHECK(rule.top_k >= 0, "[sample] top_k is ", rule.top_k, "; 0 (all) or more is required");
  MOE_CHECK(rule.top_p >= 0.0 && rule.top_p <= 1.0, "[sample] top_p is ", rule.top_p,
            "; 0 to 1 is required");
  MOE_CHECK(rule.min_p >= 0.0 && rule.min_p <= 1.0, "[sample] min_p is ", rule.min_p,
            "; 0 to 1 is required");
}

}  // namespace

void sample(MatrixView<const float> logits, const SampleRule& rule, const uint64_t* seeds,
            const uint64_t* steps, int64_t* ids) {
  check_rule(rule);
  MOE_CHECK(logits.rows == 0 || logits.cols > 0, "[sample] logits have no columns");
  const SampleKernels& kernel = *kernels().sample;
  std::vector<LogitScan> scans(static_cast<size_t>(logits.rows));
  const auto look = [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      scans[static_cast<size_t>(b)] = kernel.scan(logits.row(b), logits.cols);
    }
  };
  parallel_for(logits.rows, std::max<int64_t>(1, (1 << 17) / std::max<int64_t>(1, logits.cols)),
               look);
  for (int64_t b = 0; b < logits.rows; ++b) {
    const LogitScan& scan = scans[static_cast<size_t>(b)];
    MOE_CHECK(!scan.has_nan, "[sample] row ", b, " of the logits holds nan; numbers are required");
    MOE_CHECK(std::isfinite(scan.top), "[sample] the largest logit of row ", b, " is ", scan.top,
              "; a finite one is required");
    ids[b] = scan.first;
  }
  // A quotient that float cannot hold apart from 0 makes the best token certain, as 0 does.
  const auto temperature = static_cast<float>(rule.temperature);
  if (temperature < std::numeric_limits<float>::min()) return;
  std::vector<Draw> draws(static_cast<size_t>(std::min<int64_t>(logits.rows, num_threads())));
  for (Draw& draw : draws) {
    draw.mass.resize(static_cast<size_t>(logits.cols));
    draw.best.reserve(static_cast<size_t>(logits.cols));
  }
  TaskQueue rows;
  const auto work = [&](Team& team) {
    Draw& draw = draws[static_cast<size_t>(team.index)];
    for (int64_t b = rows.take(); b < logits.rows; b = rows.take()) {
      const float top = scans[static_cast<size_t>(b)].top;
      kernel.exponentials(logits.row(b), top, temperature, logits.cols, draw.mass.data());
      keep_top_k(rule.top_k, draw);
      keep_top_p(rule.top_p, draw);
      for (float& m : draw.mass) m = m < static_cast<float>(rule.min_p) ? 0.0f : m;
      ids[b] = draw_one(draw, random_uniform(seeds[b], steps[b]));
    }
  };
  parallel(static_cast<int>(draws.size()), work);
}

}  // namespace moe
