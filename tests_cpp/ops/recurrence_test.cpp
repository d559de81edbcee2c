#include "moe/ops/recurrence.h"

#include <gtest/gtest.h>

#include <cmath>

#include "moe/base/parallel.h"
#include "support/isas.h"
#include "support/reference.h"

namespace moe {
namespace {

using testing::normal;

class Recurrence : public testing::EveryIsa {};
MOE_EVERY_ISA(Recurrence);

/// What the inputs point to; decays and scales in (0, 1).
struct Data {
  std::vector<float> query, key, value, decay, scale, skip, state;
};

std::vector<float> between(int64_t n, uint64_t seed) {
  auto x = normal(n, seed);
  for (float& v : x) v = 1.0f / (1.0f + std::exp(-v));
  return x;
}

HeadStates make(Data& d, int64_t tokens, int64_t key_heads, int64_t heads, int64_t keys,
                int64_t values, bool per_key, bool delta) {
  const double length = 1.0 / std::sqrt(static_cast<double>(keys));
  d.query = normal(tokens * key_heads * keys, 1, length);
  d.key = normal(tokens * key_heads * keys, 2, length);
  d.value = normal(tokens * heads * values, 3);
  d.decay = between(tokens * heads * (per_key ? keys : 1), 4);
  d.scale = between(tokens * heads, 5);
  d.skip = normal(heads, 6);
  d.state = normal(heads * keys * values, 7);
  HeadStates in;
  in.tokens = tokens;
  in.key_heads = key_heads;
  in.heads = heads;
  in.key_dim = keys;
  in.value_dim = values;
  in.query = d.query.data();
  in.key = d.key.data();
  in.value = d.value.data();
  in.decay = d.decay.data();
  in.decay_per_key = per_key;
  in.scale = d.scale.data();
  in.skip = delta ? nullptr : d.skip.data();
  in.delta = delta;
  in.state = d.state.data();
  return in;
}

void reference(const HeadStates& in, std::vector<double>& out, std::vector<double>& state) {
  const int64_t K = in.key_dim, V = in.value_dim;
  for (int64_t t = 0; t < in.tokens; ++t) {
    for (int64_t h = 0; h < in.heads; ++h) {
      const int64_t shared = t * in.key_heads + h / (in.heads / in.key_heads);
      const int64_t row = t * in.heads + h;
      for (int64_t v = 0; v < V; ++v) {
        double recalled = 0.0, y = 0.0;
        for (int64_t k = 0; k < K; ++k) {
          double& s = state[(h * K + k) * V + v];
          s *= in.decay_fixed ? in.decay[h] : in.decay[in.decay_per_key ? row * K + k : row];
          recalled += s * in.key[shared * K + k];
        }
        double news = in.value[row * V + v] - (in.delta ? recalled : 0.0);
        if (in.scale != nullptr) news *= in.scale[row];
        for (int64_t k = 0; k < K; ++k) {
          double& s = state[(h * K + k) * V + v];
          s += in.key[shared * K + k] * news;
          y += s * in.query[shared * K + k];
        }
        if (in.skip != nullptr) y += in.skip[h] * static_cast<double>(in.value[row * V + v]);
        out[row * V + v] = y;
      }
    }
  }
}

void expect_close(const std::vector<double>& expected, const std::vector<float>& found) {
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_NEAR(expected[i], found[i], 4e-6 * (1.0 + std::fabs(expected[i]))) << i;
  }
}

TEST_P(Recurrence, StatesAgreeWithTheReference) {
  for (const bool delta : {false, true}) {
    for (const bool per_key : {false, true}) {
      for (const auto& [keys, values] : std::vector<std::pair<int64_t, int64_t>>{
               {1, 1}, {2, 16}, {5, 17}, {16, 32}, {33, 33}, {64, 100}}) {
        for (const int64_t key_heads : {1, 2}) {
          Data d;
          HeadStates in = make(d, 6, key_heads, 4, keys, values, per_key, delta);
          for (const bool begun : {true, false}) {
            std::vector<double> state(d.state.begin(), d.state.end()), y(d.value.size());
            if (!begun) {
              in.state = in.scale = nullptr;
              std::fill(state.begin(), state.end(), 0.0);
            }
            std::vector<float> out(y.size()), next(state.size());
            advance_states(in, out.data(), next.data());
            reference(in, y, state);
            expect_close(y, out);
            expect_close(state, next);
          }
        }
      }
    }
  }
}

TEST_P(Recurrence, ADecayMayBeTheSameForEveryToken) {
  Data d;
  HeadStates in = make(d, 5, 1, 3, 8, 20, false, false);
  in.decay_fixed = true;
  std::vector<double> state(d.state.begin(), d.state.end()), y(d.value.size());
  std::vector<float> out(y.size()), next(state.size());
  advance_states(in, out.data(), next.data());
  reference(in, y, state);
  expect_close(y, out);
  expect_close(state, next);
}

TEST_P(Recurrence, OneTokenAtATimeInPlaceAndAnyThreadsGiveTheSameBytes) {
  const int before = num_threads();
  for (const bool delta : {false, true}) {
    Data d;
    HeadStates in = make(d, 40, 2, 4, 24, 70, delta, delta);
    std::vector<float> whole(d.value.size()), end(d.state.size()), single(whole.size());
    set_num_threads(1);
    advance_states(in, whole.data(), end.data());
    set_num_threads(3);
    const HeadStates all = in;
    std::vector<float> state = d.state;
    in.tokens = 1;
    in.state = state.data();
    for (int64_t t = 0; t < all.tokens; ++t) {
      in.query = all.query + t * all.key_heads * all.key_dim;
      in.key = all.key + t * all.key_heads * all.key_dim;
      in.value = all.value + t * all.heads * all.value_dim;
      in.decay = all.decay + t * all.heads * (all.decay_per_key ? all.key_dim : 1);
      in.scale = all.scale + t * all.heads;
      advance_states(in, single.data() + t * all.heads * all.value_dim, state.data());
    }
    EXPECT_EQ(whole, single);
    EXPECT_EQ(end, state);
  }
  set_num_threads(before);
}

TEST_P(Recurrence, ScansAgreeWithTheReferenceAndCanBeCut) {
  for (const auto& [channels, states] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {16, 16}, {37, 5}, {64, 16}, {130, 3}}) {
    const int64_t tokens = 7;
    const auto x = normal(tokens * channels, 1), step = between(tokens * channels, 2);
    const auto rate = between(states * channels, 3), skip = normal(channels, 4);
    const auto b = normal(tokens * states, 5), c = normal(tokens * states, 6);
    const auto first = normal(states * channels, 7);
    ScanInputs in{tokens,      channels, states,   x.data(),    step.data(),
                  rate.data(), b.data(), c.data(), skip.data(), first.data()};
    std::vector<float> out(x.size()), next(first.size());
    selective_scan(in, out.data(), next.data());
    std::vector<double> state(first.begin(), first.end());
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t d = 0; d < channels; ++d) {
        const double u = x[t * channels + d], dt = step[t * channels + d];
        double y = skip[d] * u;
        for (int64_t n = 0; n < states; ++n) {
          double& s = state[n * channels + d];
          s = std::exp(-rate[n * channels + d] * dt) * s + dt * u * b[t * states + n];
          y += s * c[t * states + n];
        }
        ASSERT_NEAR(y, out[t * channels + d], 4e-6 * (1.0 + std::fabs(y)));
      }
    }
    expect_close(state, next);
    std::vector<float> single(out.size()), kept = first;
    in.tokens = 1;
    in.state = kept.data();
    for (int64_t t = 0; t < tokens; ++t) {
      in.x = x.data() + t * channels;
      in.step = step.data() + t * channels;
      in.b = b.data() + t * states;
      in.c = c.data() + t * states;
      selective_scan(in, single.data() + t * channels, kept.data());
    }
    EXPECT_EQ(out, single);
    EXPECT_EQ(next, kept);
    in.skip = nullptr;
    in.state = nullptr;
    selective_scan(in, single.data(), kept.data());
  }
}

}  // namespace
}  // namespace moe
