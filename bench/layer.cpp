#include "layer.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "moe/base/rng.h"

namespace moe::bench {

namespace {

// Fisher-Yates over the first `count` of n: a sample without replacement.
void shuffle_first(std::vector<int32_t>& ids, int64_t count, uint64_t seed, uint64_t* counter) {
  const auto n = static_cast<int64_t>(ids.size());
  for (int64_t i = 0; i < count; ++i) {
    const double u = random_uniform(seed, (*counter)++);
    std::swap(ids[i], ids[i + static_cast<int64_t>(u * static_cast<double>(n - i))]);
  }
}

}  // namespace

std::vector<float> random_values(int64_t n, uint64_t seed) {
  std::vector<float> values(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    const double u = random_uniform(seed, static_cast<uint64_t>(i));
    values[i] = static_cast<float>((2.0 * u - 1.0) * std::sqrt(3.0));
  }
  return values;
}

int64_t Shape::expert_bytes(Format format) const {
  const auto bytes = [&](int64_t rows, int64_t cols) {
    return (rows + kPanelRows - 1) / kPanelRows * format_info(format).panel_bytes(cols);
  };
  return 2 * bytes(inter, hidden) + bytes(hidden, inter);
}

Layer::Layer(const Shape& shape, Format format, int64_t memory_bytes)
    : shape_(shape),
      format_(format),
      resident_(
          std::min(shape.experts,
                   std::max<int64_t>(shape.top_k, memory_bytes / shape.expert_bytes(format)))),
      gate_(packed(shape.inter, shape.hidden, 1)),
      up_(packed(shape.inter, shape.hidden, 2)),
      down_(packed(shape.hidden, shape.inter, 3)) {}

PackedWeight Layer::packed(int64_t rows, int64_t cols, uint64_t seed) const {
  constexpr int64_t kPatternRows = 4 * kPanelRows;
  std::vector<float> values = random_values(kPatternRows * cols, seed);
  const float scale = 1.0f / std::sqrt(static_cast<float>(cols));
  for (float& value : values) value *= scale;
  PackedWeight pattern({format_}, 1, kPatternRows, cols);
  pattern.fill(0, values.data(), DType::kF32);
  return PackedWeight::repeating(pattern, shape_.experts, rows, resident_);
}

std::vector<Routing> Layer::routings(int64_t tokens, int count) const {
  const int64_t slots = tokens * shape_.top_k;
  const bool in_turn = slots <= resident_;
  std::vector<int32_t> ids(static_cast<size_t>(in_turn ? resident_ : shape_.experts));
  std::iota(ids.begin(), ids.end(), 0);
  const uint64_t seed = static_cast<uint64_t>(tokens);
  uint64_t counter = 0;
  auto next = static_cast<int64_t>(ids.size());  // the first unused one of a permutation
  std::vector<Routing> all;
  for (int i = 0; i < count; ++i) {
    Routing routing;
    routing.tokens = tokens;
    routing.weights.assign(static_cast<size_t>(slots), 1.0f / static_cast<float>(shape_.top_k));
    if (in_turn) {
      if (next + slots > resident_) {
        shuffle_first(ids, resident_, seed, &counter);
        next = 0;
      }
      routing.experts.assign(ids.begin() + next, ids.begin() + next + slots);
      next += slots;
    } else {
      for (int64_t t = 0; t < tokens; ++t) {
        shuffle_first(ids, shape_.top_k, seed, &counter);
        routing.experts.insert(routing.experts.end(), ids.begin(), ids.begin() + shape_.top_k);
      }
    }
    routing.touched = static_cast<int64_t>(
        std::set<int32_t>(routing.experts.begin(), routing.experts.end()).size());
    all.push_back(std::move(routing));
  }
  return all;
}

}  // namespace moe::bench
