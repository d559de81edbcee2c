#include "moe/ops/sample.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "moe/base/check.h"
#include "moe/base/parallel.h"
#include "support/isas.h"
#include "support/reference.h"

namespace moe {
namespace {

using testing::normal;

class Sample : public testing::EveryIsa {};
MOE_EVERY_ISA(Sample);

int64_t one(const std::vector<float>& logits, const SampleRule& rule, uint64_t seed = 1,
            uint64_t step = 0) {
  int64_t id = -1;
  sample({logits.data(), 1, static_cast<int64_t>(logits.size())}, rule, &seed, &step, &id);
  return id;
}

/// Which tokens are ever drawn, and how often, in 4000 steps.
std::map<int64_t, int> drawn(const std::vector<float>& logits, const SampleRule& rule) {
  std::map<int64_t, int> counts;
  for (uint64_t step = 0; step < 4000; ++step) ++counts[one(logits, rule, 7, step)];
  return counts;
}

std::vector<float> logs(const std::vector<double>& probabilities) {
  std::vector<float> logits;
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p)));
  return logits;
}

TEST_P(Sample, GreedyTakesTheLargestAndTheLowerIdOfATie) {
  for (const int64_t n : {1, 5, 16, 17, 64, 100, 1000}) {
    auto logits = normal(n, 3);
    for (const int64_t best : {n - 1, n / 2, int64_t{0}}) {
      logits[best] = 50.0f;  // the earlier ones stay: a tie, and a lower id each time
      EXPECT_EQ(best, one(logits, {}));
    }
  }
}

TEST_P(Sample, DrawsByProbability) {
  const auto counts = drawn(logs({0.5, 0.25, 0.0, 0.25}), {1.0, 0, 1.0, 0.0});
  EXPECT_EQ(0u, counts.count(2));
  EXPECT_NEAR(2000, counts.at(0), 150);
  EXPECT_NEAR(1000, counts.at(1), 130);
  // At temperature 1/2 the ratio of 2 becomes 4.
  EXPECT_NEAR(4000.0 * 4 / 6, drawn(logs({0.5, 0.25, 0.0, 0.25}), {0.5, 0, 1.0, 0.0}).at(0), 150);
}

std::set<int64_t> support(const std::vector<float>& logits, const SampleRule& rule) {
  std::set<int64_t> ids;
  for (const auto& [id, count] : drawn(logits, rule)) ids.insert(id);
  return ids;
}

TEST_P(Sample, FiltersInOrder) {
  using Set = std::set<int64_t>;
  const auto logits = logs({0.1, 0.4, 0.2, 0.2, 0.1});
  EXPECT_EQ((Set{1, 2, 3}), support(logits, {1.0, 2, 1.0, 0.0}))
      << "tied with the second: it stays";
  EXPECT_EQ((Set{1}), support(logits, {1.0, 1, 1.0, 0.0}));
  EXPECT_EQ((Set{1}), support(logits, {1.0, 0, 0.39, 0.0}));
  EXPECT_EQ((Set{1, 2}), support(logits, {1.0, 0, 0.5, 0.0})) << "of equals the lower id stays";
  EXPECT_EQ((Set{1, 2, 3}), support(logits, {1.0, 0, 0.7, 0.0}));
  EXPECT_EQ((Set{1}), support(logits, {1.0, 0, 0.0, 0.0}));
  EXPECT_EQ((Set{1, 2, 3}), support(logits, {1.0, 0, 1.0, 0.4}));
  EXPECT_EQ((Set{1}), support(logits, {1.0, 0, 1.0, 1.0}));
  // top_p counts what top_k has left: 0.4 of 0.8 is the half.
  EXPECT_EQ((Set{1}), support(logits, {1.0, 3, 0.49, 0.0}));
  EXPECT_EQ((Set{0, 1, 2, 3, 4}), support(logits, {1.0, 99, 1.0, 0.0}));
}

TEST_P(Sample, TopPMatchesASortOfTheWholeRow) {
  for (const double p : {0.05, 0.3, 0.9, 0.999}) {
    const auto logits = normal(300, 9, 2.0);
    std::vector<int64_t> order(300);
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](auto a, auto b) { return logits[a] > logits[b]; });
    double total = 0.0, above = 0.0;
    for (const float l : logits) total += std::exp(static_cast<double>(l));
    std::set<int64_t> kept;
    for (const int64_t id : order) {
      if (above < p * total) kept.insert(id);
      above += std::exp(static_cast<double>(logits[id]));
    }
    const auto counts = drawn(logits, {1.0, 0, p, 0.0});
    for (const auto& [id, count] : counts) EXPECT_TRUE(kept.count(id)) << id;
    // Nothing that stays is forgotten: whatever is expected often enough was drawn.
    for (const int64_t id : kept) {
      const double expected = 4000.0 * std::exp(static_cast<double>(logits[id])) / (p * total);
      EXPECT_TRUE(expected < 30.0 || counts.count(id) > 0) << id;
    }
  }
}

TEST_P(Sample, DependsOnSeedAndStepAlone) {
  const int64_t rows = 9, n = 500;
  std::vector<float> logits(rows * n);
  const auto row = normal(n, 4);
  for (int64_t b = 0; b < rows; ++b) std::copy(row.begin(), row.end(), logits.begin() + b * n);
  const std::vector<uint64_t> seeds = {1, 1, 1, 2, 2, 2, 3, 3, 3};
  const std::vector<uint64_t> steps = {0, 1, 2, 0, 1, 2, 0, 1, 2};
  std::vector<int64_t> many(rows), single(rows);
  const SampleRule rule{1.3, 200, 0.95, 0.001};
  const int threads = num_threads();
  for (const int count : {1, 4}) {
    set_num_threads(count);
    sample({logits.data(), rows, n}, rule, seeds.data(), steps.data(), many.data());
    for (int64_t b = 0; b < rows; ++b) single[b] = one(row, rule, seeds[b], steps[b]);
    EXPECT_EQ(single, many);
  }
  set_num_threads(threads);
  EXPECT_GT(std::set<int64_t>(many.begin(), many.end()).size(), 3u);
}

TEST_P(Sample, RefusesWhatCannotBeDrawnFrom) {
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const double temperature : {0.0, 1.0}) {
    const SampleRule rule{temperature, 0, 1.0, 0.0};
    EXPECT_THROW(one({1.0f, nan, 2.0f}, rule), ValueError);
    EXPECT_THROW(one({-inf, -inf}, rule), ValueError);
    EXPECT_THROW(one({0.0f, inf}, rule), ValueError);
    EXPECT_THROW(one({}, rule), ValueError);
    EXPECT_EQ(1, one({-inf, -3.0f, -inf}, rule));
  }
  EXPECT_EQ(1, one({0.0f, 0.5f, 0.25f}, {1e-300, 0, 1.0, 0.0})) << "as good as 0";
  EXPECT_THROW(one({1.0f}, {-1.0, 0, 1.0, 0.0}), ValueError);
  EXPECT_THROW(one({1.0f}, {1.0, -1, 1.0, 0.0}), ValueError);
  EXPECT_THROW(one({1.0f}, {1.0, 0, 1.5, 0.0}), ValueError);
  EXPECT_THROW(one({1.0f}, {1.0, 0, 1.0, -0.5}), ValueError);
}

}  // namespace
}  // namespace moe
