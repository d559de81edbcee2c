#include "moe/ops/select_keys.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <limits>

#include "moe/base/buffer.h"
#include "moe/base/check.h"
#include "moe/base/parallel.h"
#include "moe/kernels/table.h"

namespace moe {

namespace {

// Keys of one task; a multiple of kKeyBlock.
constexpr int64_t kTaskKeys = 1024;
// Scores held at a time: the queries are taken in groups that need no more.
constexpr int64_t kGroupScores = int64_t{1} << 21;
// Below this many multiply-adds a thread costs more than it brings.
constexpr int64_t kWorkPerThread = 1 << 16;

int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

/// The k best of `scores` [visible] into out [k], ascending; `ranked` [visible] is scratch.
void best(float* scores, int64_t visible, int64_t k, float* ranked, int32_t* out) {
  for (int64_t j = 0; j < visible; ++j) {
    if (std::isnan(scores[j])) scores[j] = -std::numeric_limits<float>::infinity();
  }
  const int64_t kept = std::min(k, visible);
  if (kept > 0) {
    // The last score that is taken; of those equal to it, the earliest that there is room for.
    std::copy_n(scores, visible, ranked);
    std::nth_element(ranked, ranked + kept - 1, ranked + visible, std::greater<>());
    const float last = ranked[kept - 1];
    int64_t equal =
        kept - std::count_if(ranked, ranked + kept, [last](float s) { return s > last; });
    int32_t* to = out;
    for (int64_t j = 0; j < visible; ++j) {
      const bool taken = scores[j] > last || (scores[j] == last && equal-- > 0);
      if (taken) *to++ = static_cast<int32_t>(j);
    }
  }
  std::fill(out + kept, out + k, -1);
}

void check(const SelectKeysInputs& in) {
  MOE_CHECK(in.keys.heads == 1, "[select_keys] keys have ", in.keys.heads, " heads; 1 is required");
  MOE_CHECK(in.queries.dim == in.keys.dim && in.keys.dim > 0, "[select_keys] queries have ",
            in.queries.dim, " columns per head; keys have ", in.keys.dim);
  MOE_CHECK(in.k > 0, "[select_keys] k is ", in.k, "; at least 1 is required");
  MOE_CHECK(in.keys.tokens <= std::numeric_limits<int32_t>::max(), "[select_keys] there are ",
            in.keys.tokens, " keys; at most 2^31 - 1 are possible");
  for (int64_t t = 0; t < in.queries.tokens; ++t) {
    MOE_CHECK(in.visible[t] >= 0 && in.visible[t] <= in.keys.tokens, "[select_keys] query ", t,
              " sees ", in.visible[t], " keys; 0 to ", in.keys.tokens, " are there");
  }
}

}  // namespace

void select_keys(const SelectKeysInputs& in, int32_t* out) {
  check(in);
  const int64_t queries = in.queries.tokens, heads = in.queries.heads, dim = in.keys.dim;
  const int64_t width = round_up(dim, 16), keys = in.keys.tokens;
  if (queries == 0) return;
  const int64_t group = std::clamp<int64_t>(kGroupScores / std::max<int64_t>(1, keys), 1, queries);
  const int64_t work = queries * heads * keys * dim;
  const int threads = static_cast<int>(std::min<int64_t>(num_threads(), 1 + work / kWorkPerThread));
  // From the calling thread, for all: no exception may leave a parallel region.
  const int64_t scores_size = round_up(group * keys, 16), wide = round_up(dim, 32);
  const int64_t block_size = kKeyBlock * wide, packed_size = round_up(heads, 16) * wide;
  const int64_t ranked_size = round_up(keys, 16), heads_size = round_up(2 * heads, 16);
  const int64_t own_size = block_size + packed_size + ranked_size + heads_size;
  float* memory =
      scratch_of<float>(Scratch::kGathered, static_cast<size_t>(scores_size + threads * own_size));
  const IndexKernel& kernel = kernels().attention->index[static_cast<int>(in.keys.dtype)];
  const int64_t pieces = (keys + kTaskKeys - 1) / kTaskKeys;
  const int64_t groups = (queries + group - 1) / group;
  std::atomic<int64_t> score_tasks{0}, rank_tasks{0};

  const auto score = [&](int64_t t, int64_t piece, float* scores, float* key_block) {
    const int64_t end = std::min((piece + 1) * kTaskKeys, in.visible[t]);
    if (piece * kTaskKeys >= end) return;
    float* packed = key_block + block_size;
    auto** rows = reinterpret_cast<const float**>(packed + packed_size + ranked_size);
    for (int64_t h = 0; h < heads; ++h) {
      rows[h] = static_cast<const float*>(in.queries.data) + t * in.queries.token_stride +
                h * in.queries.head_stride;
    }
    kernel.pack({rows, nullptr, dim, 0, heads, 1.0f}, width, packed);
    IndexCall call{};
    call.keys = in.keys.data;
    call.key_stride = in.keys.token_stride;
    call.dim = dim;
    call.begin = piece * kTaskKeys;
    call.end = end;
    call.queries = packed;
    call.query_stride = width;
    call.weights = in.weights + t * heads;
    call.heads = heads;
    call.out = scores;
    call.key_block = key_block;
    kernel.run(call);
  };
  const auto body = [&](Team& team) {
    float* own = memory + scores_size + team.index * own_size;
    float* ranked = own + block_size + packed_size;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t first = g * group, count = std::min(group, queries - first);
      // Tasks of all groups share one counter: group g's are those from g · group · pieces on.
      const int64_t base = first * pieces;
      for (int64_t i = score_tasks.load(); i < base + count * pieces;) {
        if (!score_tasks.compare_exchange_weak(i, i + 1)) continue;
        const int64_t t = (i - base) / pieces;
        score(first + t, (i - base) % pieces, memory + t * keys, own);
        i = score_tasks.load();
      }
      team.barrier();
      for (int64_t i = rank_tasks.load(); i < first + count;) {
        if (!rank_tasks.compare_exchange_weak(i, i + 1)) continue;
        best(memory + (i - first) * keys, in.visible[i], in.k, ranked, out + i * in.k);
        i = rank_tasks.load();
      }
      team.barrier();
    }
  };
  parallel(threads, body);
}

}  // namespace moe
