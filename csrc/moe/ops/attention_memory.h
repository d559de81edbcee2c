#pragma once
// What a thread of attention works on: softmax rows under way, and packed queries.

#include <algorithm>
#include <limits>

#include "moe/base/buffer.h"
#include "moe/kernels/table.h"
#include "moe/ops/attention.h"

namespace moe {

inline constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

/// Hands out aligned arrays of one block of memory; with a null base it only counts.
class Carver {
 public:
  explicit Carver(std::byte* base) : base_(base) {}
  template <class T>
  T* take(int64_t count) {
    std::byte* at = base_ == nullptr ? nullptr : base_ + used_;
    used_ +=
        static_cast<size_t>(round_up(count * static_cast<int64_t>(sizeof(T)), kCacheLineBytes));
    return reinterpret_cast<T*>(at);
  }
  size_t used() const { return used_; }

 private:
  std::byte* base_;
  size_t used_ = 0;
};

struct RowRange {
  int64_t begin, end;
};

/// Softmax rows of a task: under way over one segment, or over all so far.
struct RowStates {
  float* max;
  float* sum;
  float* out;  // [rows][stride]
  int64_t width, stride;

  static RowStates take(Carver& memory, int64_t rows, int64_t width) {
    const int64_t stride = apart(width);
    return {memory.take<float>(rows), memory.take<float>(rows), memory.take<float>(rows * stride),
            width, stride};
  }
  /// An odd number of lines between rows: where it is a power of two, rows share a few sets of the
  /// cache, and a row's loads wait for stores to the row 4096 bytes before.
  static int64_t apart(int64_t width) {
    constexpr int64_t kLine = 16;
    return (width / kLine | 1) * kLine;
  }
  SoftmaxRow row(int64_t r) const { return {max[r], sum[r], out + r * stride}; }
  void set(int64_t r, const SoftmaxRow& row) const {
    max[r] = row.max;
    sum[r] = row.sum;
  }
  void clear(RowRange rows) const {
    const int64_t count = rows.end - rows.begin;
    std::fill_n(max + rows.begin, count, kMinusInf);
    std::fill_n(sum + rows.begin, count, 0.0f);
    std::fill_n(out + rows.begin * stride, count * stride, 0.0f);
  }
};

/// One thread's arrays.
struct Workspace {
  const float** head;
  const float** tail;
  // Of `slots` tasks: their packed queries, what those see and what is added to their scores.
  int64_t slots, rows, query_floats;
  int64_t* prepared;  // which task is in a slot, -1: none
  const float** biases;
  KeyRange* ranges;
  float* packed;
  float* key_block;
  float* value_block;
  float* lane_sums;
  RowStates part, total;

  Workspace(Carver memory, const AttentionInputs& in, int64_t piece_rows, int64_t tasks)
      : slots(tasks), rows(piece_rows) {
    const int64_t width = round_up(in.values.dim, 16), key_width = round_up(in.keys.dim, 32);
    head = memory.take<const float*>(rows);
    tail = memory.take<const float*>(rows);
    query_floats = round_up(rows, 16) * (key_width + 16);
    prepared = memory.take<int64_t>(slots);
    if (prepared != nullptr) std::fill_n(prepared, slots, -1);
    biases = memory.take<const float*>(slots * rows);
    ranges = memory.take<KeyRange>(slots * rows);
    packed = memory.take<float>(slots * query_floats);
    key_block = memory.take<float>(kWideBlock * key_width);
    value_block = memory.take<float>(kWideBlock * round_up(width, 32));
    lane_sums = memory.take<float>(rows * 16);
    part = RowStates::take(memory, rows, width);
    total = RowStates::take(memory, rows, width);
    bytes = memory.used();
  }
  int64_t slot(int64_t task) const { return task % slots; }
  const float** bias(int64_t task) const { return biases + slot(task) * rows; }
  KeyRange* visible(int64_t task) const { return ranges + slot(task) * rows; }
  float* queries(int64_t task) const { return packed + slot(task) * query_floats; }
  size_t bytes;
};

}  // namespace moe
