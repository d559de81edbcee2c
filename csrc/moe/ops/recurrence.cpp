#include "moe/ops/recurrence.h"

#include <algorithm>
#include <cstring>

#include "moe/base/buffer.h"
#include "moe/base/parallel.h"
#include "moe/kernels/table.h"

namespace moe {

namespace {

constexpr size_t kBlockRowBytes = kStateColumns * sizeof(float);

/// Copies `columns` of `rows` rows in or out of a block of kStateColumns, zeros behind. Whole rows
/// are the rule, and a copy of constant size is a few moves instead of a call.
void load_block(const float* from, int64_t stride, int64_t rows, int columns, float* block) {
  for (int64_t i = 0; i < rows; ++i, block += kStateColumns) {
    if (from != nullptr && columns == kStateColumns) {
      std::memcpy(block, from + i * stride, kBlockRowBytes);
      continue;
    }
    const size_t given = from == nullptr ? 0 : static_cast<size_t>(columns) * sizeof(float);
    std::memset(block, 0, kBlockRowBytes);
    if (given != 0) std::memcpy(block, from + i * stride, given);
  }
}

void store_block(const float* block, int64_t rows, int columns, float* to, int64_t stride) {
  const size_t given = static_cast<size_t>(columns) * sizeof(float);
  for (int64_t i = 0; i < rows; ++i, block += kStateColumns) {
    if (columns == kStateColumns) {
      std::memcpy(to + i * stride, block, kBlockRowBytes);
    } else {
      std::memcpy(to + i * stride, block, given);
    }
  }
}

int columns_at(int64_t first, int64_t all) {
  return static_cast<int>(std::min<int64_t>(kStateColumns, all - first));
}

int64_t blocks_of(int64_t columns) { return (columns + kStateColumns - 1) / kStateColumns; }

/// Blocks per task, so that a task touches some 64 thousand numbers of states.
int64_t grain_of(int64_t tokens, int64_t rows) {
  const int64_t work = std::max<int64_t>(1, (tokens + 1) * rows * kStateColumns);
  return std::max<int64_t>(1, (1 << 16) / work);
}

}  // namespace

void advance_states(const HeadStates& in, float* out, float* new_state) {
  const auto kernel = kernels().recurrence->advance;
  const int64_t blocks = blocks_of(in.value_dim),
                shared = in.heads / std::max<int64_t>(1, in.key_heads);
  const auto piece = [&](int64_t begin, int64_t end) {
    // Attention's slot: a layer has one kind of mixer.
    float* block =
        scratch_of<float>(Scratch::kAttention, static_cast<size_t>(in.key_dim * kStateColumns));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t head = task / blocks, first = task % blocks * kStateColumns;
      const int64_t at = head * in.key_dim * in.value_dim + first;
      StateCall call{};
      call.columns = columns_at(first, in.value_dim);
      call.state = block;
      call.keys = in.key_dim;
      call.tokens = in.tokens;
      call.query = in.query + head / shared * in.key_dim;
      call.key = in.key + head / shared * in.key_dim;
      call.query_stride = call.key_stride = in.key_heads * in.key_dim;
      call.value = in.value + head * in.value_dim + first;
      call.value_stride = call.out_stride = in.heads * in.value_dim;
      const int64_t decays = in.decay_per_key ? in.key_dim : 1;
      call.decay = in.decay + head * decays;
      call.decay_stride = in.decay_fixed ? 0 : in.heads * decays;
      call.decay_per_key = in.decay_per_key;
      call.scale = in.scale == nullptr ? nullptr : in.scale + head;
      call.scale_stride = in.heads;
      call.delta = in.delta;
      call.skip = in.skip == nullptr ? 0.0f : in.skip[head];
      call.out = out + head * in.value_dim + first;
      load_block(in.state == nullptr ? nullptr : in.state + at, in.value_dim, in.key_dim,
                 call.columns, block);
      kernel(call);
      store_block(block, in.key_dim, call.columns, new_state + at, in.value_dim);
    }
  };
  parallel_for(in.heads * blocks, grain_of(in.tokens, in.key_dim), piece);
}

void selective_scan(const ScanInputs& in, float* out, float* new_state) {
  const auto kernel = kernels().recurrence->scan;
  const auto piece = [&](int64_t begin, int64_t end) {
    const int64_t size = in.states * kStateColumns;
    float* block = scratch_of<float>(Scratch::kAttention, static_cast<size_t>(2 * size));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task * kStateColumns;
      ScanCall call{};
      call.columns = columns_at(first, in.channels);
      call.state = block;
      call.rate = block + size;
      call.states = in.states;
      call.tokens = in.tokens;
      call.x = in.x + first;
      call.step = in.step + first;
      call.x_stride = call.step_stride = call.out_stride = in.channels;
      call.in = in.b;
      call.out_weight = in.c;
      call.in_stride = call.out_weight_stride = in.states;
      call.skip = in.skip == nullptr ? nullptr : in.skip + first;
      call.out = out + first;
      load_block(in.state == nullptr ? nullptr : in.state + first, in.channels, in.states,
                 call.columns, block);
      load_block(in.rate + first, in.channels, in.states, call.columns, block + size);
      kernel(call);
      store_block(block, in.states, call.columns, new_state + first, in.channels);
    }
  };
  parallel_for(blocks_of(in.channels), grain_of(8 * in.tokens, in.states), piece);
}

}  // namespace moe
