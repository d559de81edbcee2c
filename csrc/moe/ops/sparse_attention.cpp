#include "moe/ops/sparse_attention.h"

#include <algorithm>
#include <cstring>

#include "moe/base/buffer.h"
#include "moe/base/check.h"
#include "moe/base/parallel.h"

namespace moe {

namespace {

// Gathered bytes that are worth a thread of their own.
constexpr int64_t kBytesPerTask = int64_t{1} << 18;

/// Row `row` of all sources counted through.
const std::byte* row_at(const SparseAttentionInputs& in, int64_t row) {
  const HeadsView* source = in.sources;
  while (row >= source->tokens) row -= source++->tokens;
  return static_cast<const std::byte*>(source->data) +
         row * source->token_stride * static_cast<int64_t>(dtype_bytes(source->dtype));
}

void check(const char* op, const SparseAttentionInputs& in) {
  const int64_t dim = in.queries.dim + in.query_tails.dim;
  int64_t rows = 0;
  MOE_CHECK(in.source_count > 0, "[", op, "] there are no rows to select from");
  for (int64_t i = 0; i < in.source_count; ++i) {
    const HeadsView& source = in.sources[i];
    MOE_CHECK(source.heads == 1 && source.dim == dim, "[", op, "] source ", i, " has ",
              source.heads, " heads of ", source.dim, " columns; 1 of ", dim, " is required");
    MOE_CHECK(source.dtype == in.sources[0].dtype, "[", op, "] source ", i,
              " has another dtype than the first");
    rows += source.tokens;
  }
  MOE_CHECK(in.value_dim > 0 && in.value_dim <= dim, "[", op, "] value_dim is ", in.value_dim,
            "; 1 to ", dim, " is required");
  for (int64_t i = 0; i < in.queries.tokens * in.width; ++i) {
    MOE_CHECK(in.selected[i] >= -1 && in.selected[i] < rows, "[", op, "] query ", i / in.width,
              " selects row ", in.selected[i], "; -1 (none) or 0 to ", rows - 1, " is required");
  }
}

}  // namespace

void sparse_attention(const char* op, const SparseAttentionInputs& in, float* out) {
  check(op, in);
  const int64_t dim = in.queries.dim + in.query_tails.dim;
  const DType dtype = in.sources[0].dtype;
  const auto row_bytes = static_cast<int64_t>(dtype_bytes(dtype)) * dim;
  std::byte* gathered =
      scratch(Scratch::kGathered, static_cast<size_t>(std::max<int64_t>(1, in.width * row_bytes)));
  int32_t* rows = scratch_of<int32_t>(Scratch::kPlan, static_cast<size_t>(in.width + 1));
  for (int64_t t = 0; t < in.queries.tokens; ++t) {
    int64_t count = 0;
    for (int64_t i = 0; i < in.width; ++i) {
      if (in.selected[t * in.width + i] >= 0) rows[count++] = in.selected[t * in.width + i];
    }
    const auto gather = [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        std::memcpy(gathered + i * row_bytes, row_at(in, rows[i]), static_cast<size_t>(row_bytes));
      }
    };
    parallel_for(count, std::max<int64_t>(1, kBytesPerTask / row_bytes), gather);

    AttentionInputs one;
    const auto query = [t](HeadsView view) {
      view.data = static_cast<const float*>(view.data) + t * view.token_stride;
      view.tokens = 1;
      return view;
    };
    one.queries = query(in.queries);
    if (in.query_tails.dim > 0) one.query_tails = query(in.query_tails);
    one.keys = {gathered, dtype, count, 1, dim, dim, dim};
    one.values = one.keys;
    one.values.dim = in.value_dim;
    one.scale = in.scale;
    one.causal = false;
    one.sinks = in.sinks;
    attention(op, one, out + t * in.queries.heads * in.value_dim);
  }
}

}  // namespace moe
