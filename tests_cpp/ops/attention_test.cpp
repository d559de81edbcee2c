#include "moe/ops/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "moe/base/check.h"
#include "moe/base/half.h"
#include "moe/base/parallel.h"
#include "support/isas.h"
#include "support/tolerance.h"

namespace moe {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

/// A plain array of one of the dtypes, filled from a seed.
struct Cells {
  DType dtype;
  std::vector<std::byte> bytes;
  int64_t count;

  Cells(DType dtype_, int64_t count_, uint32_t seed, float spread = 1.0f)
      : dtype(dtype_), bytes(static_cast<size_t>(count_) * dtype_bytes(dtype_)), count(count_) {
    std::mt19937 engine(seed);
    std::normal_distribution<float> normal(0.0f, spread);
    for (int64_t i = 0; i < count; ++i) set(i, normal(engine));
  }
  void set(int64_t i, float value) {
    const auto at = static_cast<size_t>(i);
    if (dtype == DType::kF32) reinterpret_cast<float*>(bytes.data())[at] = value;
    if (dtype == DType::kBf16) reinterpret_cast<bf16*>(bytes.data())[at] = to_bf16(value);
    if (dtype == DType::kF16) reinterpret_cast<f16*>(bytes.data())[at] = to_f16(value);
  }
  float at(int64_t i) const { return load_float(bytes.data(), dtype, i); }
};

struct Case {
  int64_t queries, heads, kv_heads, keys, key_dim, value_dim;
  DType dtype = DType::kF32;
};

/// A problem with its memory.
struct Problem {
  Case shape;
  Cells q, k, v;
  AttentionInputs in;

  explicit Problem(const Case& c, uint32_t seed = 1)
      : shape(c),
        q(DType::kF32, c.queries * c.heads * c.key_dim, seed),
        k(c.dtype, c.keys * c.kv_heads * c.key_dim, seed + 1),
        v(c.dtype, c.keys * c.kv_heads * c.value_dim, seed + 2) {
    in.queries = {q.bytes.data(), DType::kF32,         c.queries, c.heads,
                  c.key_dim,      c.heads * c.key_dim, c.key_dim};
    in.keys = {k.bytes.data(),         c.dtype,  c.keys, c.kv_heads, c.key_dim,
               c.kv_heads * c.key_dim, c.key_dim};
    in.values = {v.bytes.data(),           c.dtype,    c.keys, c.kv_heads, c.value_dim,
                 c.kv_heads * c.value_dim, c.value_dim};
    in.scale = 1.0f / std::sqrt(static_cast<float>(c.key_dim));
    in.first_position = std::max<int64_t>(c.keys - c.queries, 0);
  }
  std::vector<float> run() const {
    std::vector<float> out(static_cast<size_t>(shape.queries * shape.heads * shape.value_dim),
                           -7.0f);
    attention("attention", in, out.data());
    return out;
  }
  /// The same problem for queries [begin, end) alone.
  std::vector<float> run_queries(int64_t begin, int64_t end) const {
    AttentionInputs part = in;
    part.queries.data =
        static_cast<const float*>(in.queries.data) + begin * in.queries.token_stride;
    part.queries.tokens = end - begin;
    part.first_position += begin;
    if (part.bias != nullptr) part.bias += begin * part.bias_query_stride;
    if (part.query_tails.data != nullptr) {
      part.query_tails.data =
          static_cast<const float*>(part.query_tails.data) + begin * part.query_tails.token_stride;
      part.query_tails.tokens = end - begin;
    }
    std::vector<float> out(static_cast<size_t>((end - begin) * shape.heads * shape.value_dim));
    attention("attention", part, out.data());
    return out;
  }
};

bool sees(const AttentionInputs& in, int64_t head, int64_t query, int64_t key) {
  const int64_t position = in.first_position + query;
  if (in.causal && key > position) return false;
  if (in.window > 0 && key <= position - in.window) return false;
  if (in.chunk > 0 && key / in.chunk != position / in.chunk) return false;
  if (in.key_mask != nullptr && !in.key_mask[key]) return false;
  return in.bias == nullptr ||
         in.bias[head * in.bias_head_stride + query * in.bias_query_stride + key] != -kInf;
}

/// Definition, in double.
std::vector<double> naive(const Problem& p) {
  const AttentionInputs& in = p.in;
  const Case& c = p.shape;
  std::vector<double> out(static_cast<size_t>(c.queries * c.heads * c.value_dim), 0.0);
  for (int64_t i = 0; i < c.queries; ++i) {
    for (int64_t h = 0; h < c.heads; ++h) {
      const int64_t kv = h / (c.heads / c.kv_heads);
      std::vector<double> score(static_cast<size_t>(c.keys));
      double top = in.sinks != nullptr ? static_cast<double>(in.sinks[h]) : -kInf;
      for (int64_t j = 0; j < c.keys; ++j) {
        if (!sees(in, h, i, j)) continue;
        double s = 0;
        for (int64_t d = 0; d < c.key_dim; ++d) {
          s += static_cast<double>(p.q.at((i * c.heads + h) * c.key_dim + d)) *
               p.k.at((j * c.kv_heads + kv) * c.key_dim + d);
        }
        s *= in.scale;
        if (in.softcap > 0) s = in.softcap * std::tanh(s / in.softcap);
        if (in.bias != nullptr) {
          s += in.bias[h * in.bias_head_stride + i * in.bias_query_stride + j];
        }
        score[static_cast<size_t>(j)] = s;
        top = std::max(top, s);
      }
      double sum = in.sinks != nullptr ? std::exp(in.sinks[h] - top) : 0.0;
      double* row = &out[static_cast<size_t>((i * c.heads + h) * c.value_dim)];
      for (int64_t j = 0; j < c.keys; ++j) {
        if (!sees(in, h, i, j)) continue;
        const double w = std::exp(score[static_cast<size_t>(j)] - top);
        sum += w;
        for (int64_t d = 0; d < c.value_dim; ++d) {
          row[d] += w * p.v.at((j * c.kv_heads + kv) * c.value_dim + d);
        }
      }
      for (int64_t d = 0; d < c.value_dim; ++d) row[d] = sum == 0 ? 0 : row[d] / sum;
    }
  }
  return out;
}

void expect_near(const Problem& p) {
  const std::vector<float> got = p.run();
  const std::vector<double> want = naive(p);
  const double bound = testing::attention_bound(p.shape.dtype != DType::kF32);
  ASSERT_EQ(got.size(), want.size());
  double error = 0, power = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    error += (got[i] - want[i]) * (got[i] - want[i]);
    power += want[i] * want[i];
    ASSERT_NEAR(got[i], want[i], 6.5 * std::sqrt(bound)) << "at " << i;
  }
  EXPECT_LE(error, bound * power + 1e-30);
}

void expect_same_bytes(const float* got, const float* want, size_t count) {
  ASSERT_EQ(std::memcmp(got, want, count * sizeof(float)), 0);
}

/// Whole against chunks of the prompt, one query at a time, and other numbers of threads.
void expect_same_however_it_is_cut(const Problem& p, std::vector<int> thread_counts = {2}) {
  const int threads = num_threads();
  set_num_threads(1);
  const std::vector<float> whole = p.run();
  const auto row = static_cast<size_t>(p.shape.heads * p.shape.value_dim);
  for (const int64_t piece : {int64_t{1}, int64_t{7}, int64_t{64}}) {
    for (int64_t begin = 0; begin < p.shape.queries; begin += piece) {
      const int64_t end = std::min(begin + piece, p.shape.queries);
      const std::vector<float> part = p.run_queries(begin, end);
      expect_same_bytes(part.data(), &whole[static_cast<size_t>(begin) * row], part.size());
    }
  }
  for (const int other : thread_counts) {
    set_num_threads(other);
    const std::vector<float> again = p.run();
    expect_same_bytes(again.data(), whole.data(), whole.size());
    const std::vector<float> last = p.run_queries(p.shape.queries - 1, p.shape.queries);
    expect_same_bytes(last.data(), &whole[whole.size() - row], row);
  }
  set_num_threads(threads);
}

const Case kCases[] = {
    {1, 1, 1, 1, 1, 1},
    {1, 1, 1, 65, 3, 5},
    {5, 4, 2, 5, 8, 8},
    {17, 8, 2, 300, 24, 40, DType::kBf16},
    {3, 8, 1, 129, 72, 17},
    {70, 3, 3, 70, 64, 64, DType::kF16},
    {33, 6, 3, 64, 40, 24, DType::kBf16},
    {2, 8, 2, 1100, 128, 128},
    {4, 7, 1, 600, 17, 31, DType::kF16},
    {30, 2, 1, 513, 576, 512, DType::kBf16},
    {1, 16, 1, 200, 64, 48, DType::kBf16},
    {41, 5, 1, 140, 96, 80, DType::kF16},
    {9, 37, 1, 100, 50, 33, DType::kBf16},
    {21, 13, 1, 270, 64, 150, DType::kBf16},
    {12, 24, 2, 140, 40, 112, DType::kF16},
};

class AttentionOp : public testing::EveryIsa {};
MOE_EVERY_ISA(AttentionOp);

TEST_P(AttentionOp, IsTheDefinition) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(message("T ", c.queries, " S ", c.keys, " D ", c.key_dim));
    Problem p(c);
    expect_near(p);
    p.in.causal = false;
    expect_near(p);
    p.in.causal = true;
    p.in.softcap = 1.5f;
    expect_near(p);
  }
}

TEST_P(AttentionOp, EveryNumberOfKeys) {
  for (int64_t keys = 1; keys <= 200; ++keys) {
    Problem p({1 + keys % 5 % keys, 4, 2, keys, 8, 8}, static_cast<uint32_t>(keys));
    expect_near(p);
  }
}

TEST_P(AttentionOp, WindowsChunksAndSinks) {
  const Cells sinks(DType::kF32, 64, 9, 3.0f);
  for (const Case& c : kCases) {
    SCOPED_TRACE(message("T ", c.queries, " S ", c.keys, " D ", c.key_dim));
    Problem p(c);
    for (const int64_t size : {1, 3, 64, 100}) {
      p.in.window = size;
      expect_near(p);
      p.in.window = 0;
      p.in.chunk = size;
      expect_near(p);
      p.in.chunk = 0;
    }
    p.in.sinks = reinterpret_cast<const float*>(sinks.bytes.data());
    expect_near(p);
  }
}

TEST_P(AttentionOp, BiasAndKeyMask) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(message("T ", c.queries, " S ", c.keys, " D ", c.key_dim));
    Problem p(c);
    Cells bias(DType::kF32, c.heads * c.queries * c.keys, 11);
    for (int64_t i = 0; i < bias.count; i += 3) bias.set(i, -kInf);
    p.in.bias = reinterpret_cast<const float*>(bias.bytes.data());
    p.in.bias_head_stride = c.queries * c.keys;
    p.in.bias_query_stride = c.keys;
    expect_near(p);
    expect_same_however_it_is_cut(p);
    p.in.bias_head_stride = 0;  // [T, S]
    const auto mask = std::make_unique<bool[]>(static_cast<size_t>(c.keys));
    for (int64_t j = 0; j < c.keys; ++j) mask[static_cast<size_t>(j)] = j % 5 != 1;
    p.in.key_mask = mask.get();
    p.in.causal = false;
    expect_near(p);
  }
}

TEST_P(AttentionOp, SameBytesHoweverItIsCut) {
  const Cells sinks(DType::kF32, 64, 9, 3.0f);
  for (const Case& c : kCases) {
    SCOPED_TRACE(message("T ", c.queries, " S ", c.keys, " D ", c.key_dim));
    Problem p(c);
    expect_same_however_it_is_cut(p);
    p.in.sinks = reinterpret_cast<const float*>(sinks.bytes.data());
    p.in.window = 50;
    expect_same_however_it_is_cut(p);
    p.in.window = 0;
    p.in.chunk = 90;
    expect_same_however_it_is_cut(p);
  }
}

TEST_P(AttentionOp, SameBytesOnManyThreads) {
  expect_same_however_it_is_cut(Problem({3, 8, 2, 1100, 40, 40}), {3, 8});
  expect_same_however_it_is_cut(Problem({90, 4, 4, 90, 16, 16}), {3, 8});
}

// What a longer cache holds behind the position of a query is as if it were not there.
TEST_P(AttentionOp, LaterKeysDoNotShow) {
  Problem longer({9, 4, 2, 700, 24, 24});
  Problem shorter = longer;
  longer.in.first_position = 300;
  shorter.in.first_position = 300;
  shorter.in.keys.tokens = shorter.in.values.tokens = 309;
  const std::vector<float> a = longer.run(), b = shorter.run();
  expect_same_bytes(a.data(), b.data(), a.size());
}

// NaN and Inf in keys and values change nothing for the queries that do not see them, to the byte,
// and everything for those that do.
TEST_P(AttentionOp, DamageStaysWhereItIsSeen) {
  for (const Case& c : {Case{40, 4, 2, 150, 24, 24}, Case{80, 3, 3, 600, 16, 32, DType::kBf16},
                        Case{1, 8, 1, 150, 8, 8}, Case{50, 4, 1, 200, 64, 70, DType::kF16},
                        Case{19, 9, 1, 180, 32, 150, DType::kBf16}}) {
    for (const int64_t window : {0, 20}) {
      Problem p(c);
      p.in.window = window;
      const std::vector<float> clean = p.run();
      for (const int64_t bad : {c.keys - 1, c.keys - 30, c.keys - 70}) {
        for (const float value : {kNan, kInf}) {
          for (const bool in_keys : {false, true}) {
            Problem hurt(c);
            hurt.in.window = window;
            Cells& cells = in_keys ? hurt.k : hurt.v;
            const int64_t width = c.kv_heads * (in_keys ? c.key_dim : c.value_dim);
            for (int64_t i = 0; i < width; ++i) cells.set(bad * width + i, value);
            const std::vector<float> got = hurt.run();
            const auto row = static_cast<size_t>(c.heads * c.value_dim);
            for (int64_t i = 0; i < c.queries; ++i) {
              const float* at = &got[static_cast<size_t>(i) * row];
              if (!sees(p.in, 0, i, bad)) {
                expect_same_bytes(at, &clean[static_cast<size_t>(i) * row], row);
              } else if (std::isnan(value)) {
                for (size_t d = 0; d < row; ++d) ASSERT_TRUE(std::isnan(at[d]));
              }
            }
            if (in_keys && bad == c.keys - 30) expect_same_however_it_is_cut(hurt);
          }
        }
      }
    }
  }
}

// Inf in one column of a value stays in that column.
TEST_P(AttentionOp, DamageStaysInItsColumn) {
  for (const Case& c :
       {Case{40, 4, 2, 150, 24, 24, DType::kBf16}, Case{19, 9, 1, 180, 32, 150, DType::kBf16},
        Case{3, 16, 1, 300, 64, 96, DType::kF16}, Case{9, 3, 1, 90, 8, 40}}) {
    const Problem clean(c);
    const std::vector<float> want = clean.run();
    for (const int64_t column : {int64_t{0}, c.value_dim / 2, c.value_dim - 1}) {
      Problem hurt(c);
      const int64_t bad = c.keys - c.queries / 2 - 1;
      hurt.v.set(bad * c.kv_heads * c.value_dim + column, kInf);  // the first kv head's
      const std::vector<float> got = hurt.run();
      const int64_t width = c.heads * c.value_dim;
      for (size_t i = 0; i < got.size(); ++i) {
        const auto at = static_cast<int64_t>(i);
        const int64_t head = at % width / c.value_dim;
        if (sees(hurt.in, 0, at / width, bad) && head < c.heads / c.kv_heads &&
            at % c.value_dim == column) {
          ASSERT_EQ(got[i], kInf);
        } else {
          ASSERT_NEAR(got[i], want[i], 2e-5);
        }
      }
      expect_same_however_it_is_cut(hurt);
    }
  }
}

// The same with a key hidden by a bias, where neighbours on both sides are seen.
TEST_P(AttentionOp, MaskedKeysMayHoldAnything) {
  const Case c{5, 4, 2, 100, 24, 24};
  Problem p(c), hurt(c);
  Cells bias(DType::kF32, c.queries * c.keys, 3);
  for (int64_t i = 0; i < c.queries; ++i) bias.set(i * c.keys + 40, -kInf);
  for (Problem* each : {&p, &hurt}) {
    each->in.bias = reinterpret_cast<const float*>(bias.bytes.data());
    each->in.bias_query_stride = c.keys;
  }
  for (int64_t d = 0; d < c.kv_heads * c.key_dim; ++d) {
    hurt.k.set(40 * c.kv_heads * c.key_dim + d, d % 2 == 0 ? kNan : kInf);
    hurt.v.set(40 * c.kv_heads * c.value_dim + d, kNan);
  }
  const std::vector<float> want = p.run(), got = hurt.run();
  expect_same_bytes(got.data(), want.data(), want.size());
}

TEST_P(AttentionOp, NothingSeenIsZero) {
  Problem p({3, 2, 1, 10, 8, 8});
  const bool none[10] = {};
  p.in.key_mask = none;
  for (const float x : p.run()) EXPECT_EQ(x, 0.0f);
  const float sinks[2] = {-kInf, 1.0f};
  p.in.sinks = sinks;
  for (const float x : p.run()) EXPECT_EQ(x, 0.0f);
  Problem empty({3, 2, 1, 0, 8, 8});
  for (const float x : empty.run()) EXPECT_EQ(x, 0.0f);
}

TEST_P(AttentionOp, HugeScoresDoNotOverflow) {
  Problem p({4, 2, 1, 90, 16, 16});
  p.in.scale = 500.0f;
  expect_near(p);
}

// MLA: queries in two parts, one kv head, values inside the keys; strided caches.
TEST_P(AttentionOp, LatentCacheIsKeysAndValues) {
  struct Latent {
    DType dtype;
    int64_t heads, latent;
  };
  for (const auto& [dtype, heads, latent] :
       {Latent{DType::kF32, 5, 40}, Latent{DType::kBf16, 5, 40}, Latent{DType::kF16, 5, 40},
        Latent{DType::kF32, 5, 48}, Latent{DType::kBf16, 5, 64}, Latent{DType::kF16, 9, 48},
        Latent{DType::kBf16, 9, 160}}) {
    const int64_t tokens = 6, keys = 140, rope = 8, width = latent + rope;
    const int64_t capacity_stride = width + 3;
    Cells cache(dtype, keys * capacity_stride, 21);
    Problem p({tokens, heads, 1, keys, width, latent, dtype});
    for (int64_t j = 0; j < keys; ++j) {
      for (int64_t d = 0; d < width; ++d) {
        p.k.set(j * width + d, cache.at(j * capacity_stride + d));
        if (d < latent) p.v.set(j * latent + d, cache.at(j * capacity_stride + d));
      }
    }
    const std::vector<float> want = p.run();
    Problem mla = p;
    Cells head(DType::kF32, tokens * heads * latent, 1),
        tail(DType::kF32, tokens * heads * rope, 1);
    for (int64_t i = 0; i < tokens * heads; ++i) {
      for (int64_t d = 0; d < latent; ++d) head.set(i * latent + d, p.q.at(i * width + d));
      for (int64_t d = 0; d < rope; ++d) tail.set(i * rope + d, p.q.at(i * width + latent + d));
    }
    mla.in.queries = {head.bytes.data(), DType::kF32, tokens, heads, latent,
                      heads * latent,    latent};
    mla.in.query_tails = {tail.bytes.data(), DType::kF32, tokens, heads, rope, heads * rope, rope};
    mla.in.keys = {cache.bytes.data(), dtype, keys, 1, width, capacity_stride, 0};
    mla.in.values = {cache.bytes.data(), dtype, keys, 1, latent, capacity_stride, 0};
    const std::vector<float> got = mla.run();
    expect_same_bytes(got.data(), want.data(), want.size());
    expect_near(p);
    expect_same_however_it_is_cut(mla);
  }
}

TEST(Attention, RefusesShapesThatDoNotFit) {
  const Case c{3, 4, 2, 10, 8, 8};
  const auto refused = [&](auto spoil, const char* text) {
    Problem p(c);
    spoil(p.in);
    try {
      p.run();
      ADD_FAILURE() << "accepted: " << text;
    } catch (const ValueError& e) {
      EXPECT_NE(std::string(e.what()).find(text), std::string::npos) << e.what();
    }
  };
  refused([](AttentionInputs& in) { in.queries.heads = 3; },
          "[attention] q has 3 heads and k has 2");
  refused([](AttentionInputs& in) { in.keys.heads = 0; }, "k has 0");
  refused([](AttentionInputs& in) { in.queries.dim = 7; }, "q has 7 columns per head; k has 8");
  refused([](AttentionInputs& in) { in.values.tokens = 9; }, "v has 9 tokens");
  refused([](AttentionInputs& in) { in.values.dtype = DType::kBf16; }, "different dtypes");
  refused([](AttentionInputs& in) { in.first_position = -1; }, "stands at position -1");
  refused([](AttentionInputs& in) { in.window = -2; }, "window is -2");
  refused([](AttentionInputs& in) { in.chunk = -2; }, "chunk is -2");
  refused([](AttentionInputs& in) { in.causal = false, in.window = 4; }, "without causal");
  refused([](AttentionInputs& in) { in.softcap = -1.0f; }, "softcap is -1");
}

}  // namespace
}  // namespace moe
