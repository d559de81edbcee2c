#include "moe/ops/attention.h"

#include <algorithm>

#include "moe/base/buffer.h"
#include "moe/base/check.h"
#include "moe/base/parallel.h"
#include "moe/kernels/table.h"
#include "moe/ops/attention_memory.h"

namespace moe {

namespace {

// Query rows of one task: enough that transposing a key block (its cost is that of about five rows)
// does not show, few enough that their queries and outputs stay in L2.
constexpr int64_t kTaskRows = 128;
constexpr int64_t kSmallTaskRows = 24;
// Rows of a step of decoding at most: of few rows reading the keys is all the cost.
constexpr int64_t kStepRows = 16;
// Below this many multiply-adds a thread costs more than it brings.
constexpr int64_t kWorkPerThread = 1 << 16;
// A segment's keys and values of all heads that stay in L2 beside the rest.
constexpr int64_t kMaxSegmentBytes = int64_t{1} << 20;
// More partial results than this are not worth splitting the queries' keys over threads.
constexpr size_t kMaxPartialBytes = size_t{256} << 20;

// Rows whose parts one thread merges: a step's few rows are shared by all threads.
constexpr int64_t kMergeRows = 4;

// Widens a range of segments, empty at first, to those that hold the keys.
void add_segments(KeyRange keys, KeyRange& segments) {
  if (keys.begin >= keys.end) return;
  const KeyRange touched = {keys.begin / kKeySegment, (keys.end + kKeySegment - 1) / kKeySegment};
  const bool first = segments.begin >= segments.end;
  segments.begin = first ? touched.begin : std::min(segments.begin, touched.begin);
  segments.end = first ? touched.end : std::max(segments.end, touched.end);
}

KeyRange visible_keys(const AttentionInputs& in, int64_t query) {
  const int64_t position = in.first_position + query;
  KeyRange range{0, in.keys.tokens};
  if (in.causal) range.end = std::min(range.end, position + 1);
  if (in.window > 0) range.begin = std::max(range.begin, position - in.window + 1);
  if (in.chunk > 0) {
    const int64_t first = position / in.chunk * in.chunk;
    range.begin = std::max(range.begin, first);
    range.end = std::min(range.end, first + in.chunk);
  }
  return range.begin < range.end ? range : KeyRange{0, 0};
}

/// A call's split into tasks: some rows (queries × heads of one kv head) and all their keys.
class Tasks {
 public:
  Tasks(const AttentionInputs& in, const float* key_bias, const KernelTable& table, float* out)
      : in_(in),
        key_bias_(key_bias),
        kernels_(*table.attention),
        out_(out),
        group_(in.queries.heads / in.keys.heads),
        kernel_((group_ < kManyHeads ? kernels_.few_heads : kernels_.many_heads)
                    [in.keys.scales != nullptr ? 3 : static_cast<size_t>(in.keys.dtype)]),
        rows_(in.queries.tokens * group_) {
    const int64_t all_rows = rows_ * in.keys.heads;
    const int64_t work = all_rows * in.keys.tokens * (in.keys.dim + in.values.dim);
    threads_ = static_cast<int>(std::min<int64_t>(num_threads(), 1 + work / kWorkPerThread));
    segments_ = (in.keys.tokens + kKeySegment - 1) / kKeySegment;
    // Keys are read once for each piece: rows stay together where segments keep all threads busy.
    const bool busy = threads_ == 1 || in.keys.heads * segments_ >= 4 * threads_;
    const int64_t wanted =
        busy ? kTaskRows : std::clamp(all_rows / (4 * threads_), kSmallTaskRows, kTaskRows);
    pieces_ = (rows_ + wanted - 1) / wanted;
    piece_rows_ = (rows_ + pieces_ - 1) / pieces_;
    count_ = pieces_ * in.keys.heads;
    const auto partial = static_cast<size_t>(count_ * segments_ * piece_rows_ * in.values.dim) * 4;
    const bool worth = segments_ > 1 && partial <= kMaxPartialBytes;
    heads_in_turn_ = worth && rows_ <= kStepRows && side_by_side();
    split_ = heads_in_turn_ || (worth && threads_ > 1 && count_ < 4 * threads_);
    if (split_) visible_segments();
  }

  void run() {
    const int64_t width = round_up(in_.values.dim, 16);
    const int64_t slots = heads_in_turn_ ? count_ : 1;
    const size_t per_thread = Workspace(Carver(nullptr), in_, piece_rows_, slots).bytes;
    Carver counted(nullptr);
    const int64_t partial_rows = split_ ? count_ * segments_ * piece_rows_ : 0;
    RowStates::take(counted, partial_rows, width);
    // From the calling thread, for all: memory that cannot be had is an exception here, and none
    // may leave a parallel region.
    std::byte* memory =
        scratch(Scratch::kAttention, counted.used() + per_thread * static_cast<size_t>(threads_));
    Carver partials(memory + per_thread * static_cast<size_t>(threads_));
    partials_ = RowStates::take(partials, partial_rows, width);

    TaskQueue tasks, merges;
    RunQueue parts(count_ * segments_, threads_);
    const auto work = [&](Team& team) {
      Workspace own(Carver(memory + per_thread * static_cast<size_t>(team.index)), in_, piece_rows_,
                    slots);
      if (!split_) {
        for (int64_t i = tasks.take(); i < count_; i = tasks.take()) {
          whole(own, count_ - 1 - i);  // later queries see more keys: long tasks first
        }
        return;
      }
      for (RunQueue::Run run = parts.take(); run.begin < run.end; run = parts.take()) {
        for (int64_t i = run.begin; i < run.end; ++i) {
          part(own, i, i + 1 < run.end ? i + 1 : parts.next());
        }
      }
      team.barrier();
      const int64_t pieces = (piece_rows_ + kMergeRows - 1) / kMergeRows;
      for (int64_t i = merges.take(); i < count_ * pieces; i = merges.take()) {
        const int64_t task = i / pieces;
        const RowRange rows = {i % pieces * kMergeRows,
                               std::min((i % pieces + 1) * kMergeRows, task_rows(task))};
        own.total.clear(rows);
        for (int64_t s = 0; s < segments_; ++s) {
          merge(own, rows, partial({task, s}));
        }
        finish(own.total, task, rows);
      }
    };
    parallel(threads_, work);
  }

 private:
  /// Whether a token's heads lie beside each other, and a segment of all of them stays in L2.
  bool side_by_side() const {
    const HeadsView &k = in_.keys, &v = in_.values;
    const size_t bytes = k.scales != nullptr ? 1 : dtype_bytes(k.dtype);
    return k.heads > 1 && k.head_stride < k.token_stride &&
           kKeySegment * k.heads * (k.dim + v.dim) * static_cast<int64_t>(bytes) <=
               kMaxSegmentBytes;
  }
  /// Leaves out segments that no query sees.
  void visible_segments() {
    KeyRange seen{};
    for (int64_t i = 0; i < in_.queries.tokens; ++i) add_segments(visible_keys(in_, i), seen);
    first_segment_ = seen.begin;
    segments_ = seen.end - seen.begin;
  }
  /// A split task's segment, counted from the first that is seen.
  struct Part {
    int64_t task, segment;
  };
  /// In the order in which they are taken; later queries see more keys.
  Part part_at(int64_t i) const {
    if (heads_in_turn_) return {i % count_, i / count_};
    return {count_ - 1 - i / segments_, i % segments_};
  }
  /// `later` is what this thread probably takes next.
  void part(Workspace& own, int64_t i, int64_t later) const {
    const Part at = part_at(i);
    prepare(own, at.task);
    Block next;
    if (later < count_ * segments_) {
      const Part then = part_at(later);
      next = {kv_head(then.task), first_segment_ + then.segment};
    }
    attend(own, at.task, first_segment_ + at.segment, next, partial(at));
  }

  int64_t first_row(int64_t task) const { return task % pieces_ * rows_ / pieces_; }
  int64_t task_rows(int64_t task) const {
    return (task % pieces_ + 1) * rows_ / pieces_ - first_row(task);
  }
  int64_t kv_head(int64_t task) const { return task / pieces_; }
  int64_t query(int64_t task, int64_t r) const { return (first_row(task) + r) / group_; }
  int64_t head(int64_t task, int64_t r) const {
    return kv_head(task) * group_ + (first_row(task) + r) % group_;
  }
  RowStates partial(Part part) const {
    const int64_t row = (part.task * segments_ + part.segment) * piece_rows_;
    return {partials_.max + row, partials_.sum + row, partials_.out + row * partials_.stride,
            partials_.width, partials_.stride};
  }

  /// Queries of a task, once for all segments that this thread takes of it.
  void prepare(Workspace& own, int64_t task) const {
    int64_t& prepared = own.prepared[own.slot(task)];
    if (prepared == task) return;
    prepared = task;
    const HeadsView &q = in_.queries, &tails = in_.query_tails;
    const int64_t rows = task_rows(task);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t i = query(task, r), h = head(task, r);
      own.head[r] = static_cast<const float*>(q.data) + i * q.token_stride + h * q.head_stride;
      if (tails.dim > 0) {
        own.tail[r] =
            static_cast<const float*>(tails.data) + i * tails.token_stride + h * tails.head_stride;
      }
      if (in_.bias != nullptr) {
        own.bias(task)[r] = in_.bias + h * in_.bias_head_stride + i * in_.bias_query_stride;
      }
      own.visible(task)[r] = visible_keys(in_, i);
    }
    kernel_.pack({own.head, own.tail, q.dim, tails.dim, rows, in_.scale},
                 round_up(in_.keys.dim, 16), own.queries(task));
  }

  /// A segment of a kv head's keys and values; none: -1.
  struct Block {
    int64_t kv_head = -1, segment = 0;
  };
  void attend(Workspace& own, int64_t task, int64_t segment, Block next,
              const RowStates& into) const {
    const auto address = [&](const HeadsView& view, int64_t kv_head, int64_t token) {
      const size_t bytes = view.scales != nullptr ? 1 : dtype_bytes(view.dtype);
      return static_cast<const std::byte*>(view.data) +
             (token * view.token_stride + kv_head * view.head_stride) * static_cast<int64_t>(bytes);
    };
    const auto scales_of_head = [&](const HeadsView& view) {
      return view.scales != nullptr ? view.scales + kv_head(task) * view.scale_head_stride
                                    : nullptr;
    };
    AttentionCall call{};
    call.keys = address(in_.keys, kv_head(task), 0);
    call.values = address(in_.values, kv_head(task), 0);
    call.key_stride = in_.keys.token_stride;
    call.value_stride = in_.values.token_stride;
    call.key_dim = in_.keys.dim;
    call.value_dim = in_.values.dim;
    call.begin = segment * kKeySegment;
    call.end = std::min(call.begin + kKeySegment, in_.keys.tokens);
    if (next.kv_head >= 0) {
      call.next_keys = address(in_.keys, next.kv_head, next.segment * kKeySegment);
      call.next_values = address(in_.values, next.kv_head, next.segment * kKeySegment);
    }
    call.rows = task_rows(task);
    call.queries = own.queries(task);
    call.query_stride = round_up(in_.keys.dim, 16);
    call.visible = own.visible(task);
    call.bias = in_.bias != nullptr ? own.bias(task) : nullptr;
    call.key_bias = key_bias_;
    call.key_scales = scales_of_head(in_.keys);
    call.value_scales = scales_of_head(in_.values);
    call.softcap = in_.softcap;
    call.max = into.max;
    call.sum = into.sum;
    call.out = into.out;
    call.out_width = into.width;
    call.out_stride = into.stride;
    call.key_block = own.key_block;
    call.value_block = own.value_block;
    call.lane_sums = own.lane_sums;
    kernel_.run(call);
  }

  void merge(Workspace& own, RowRange rows, const RowStates& part) const {
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      SoftmaxRow total = own.total.row(r);
      kernels_.merge(total, part.row(r), part.width);
      own.total.set(r, total);
    }
  }

  void whole(Workspace& own, int64_t task) const {
    prepare(own, task);
    const RowRange rows = {0, task_rows(task)};
    KeyRange seen{};
    for (int64_t r = 0; r < rows.end; ++r) add_segments(own.visible(task)[r], seen);
    if (seen.begin == seen.end) own.total.clear(rows);
    for (int64_t s = seen.begin; s < seen.end; ++s) {
      // Merging the first part with nothing would give the same bytes.
      const bool first = s == seen.begin;
      const Block next = s + 1 < seen.end ? Block{kv_head(task), s + 1} : Block{};
      attend(own, task, s, next, first ? own.total : own.part);
      if (!first) merge(own, rows, own.part);
    }
    finish(own.total, task, rows);
  }

  void finish(const RowStates& total, int64_t task, RowRange rows) const {
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      const int64_t i = query(task, r), h = head(task, r);
      kernels_.finish(total.row(r), in_.sinks == nullptr ? nullptr : in_.sinks + h, in_.values.dim,
                      out_ + (i * in_.queries.heads + h) * in_.values.dim);
    }
  }

  const AttentionInputs& in_;
  const float* key_bias_;
  const AttentionKernels& kernels_;
  float* out_;
  int64_t group_;  // query heads per kv head
  const AttendKernel& kernel_;
  int64_t rows_;  // of one kv head
  int threads_;
  int64_t pieces_, piece_rows_;  // tasks per kv head and the rows of the largest
  int64_t count_, segments_, first_segment_ = 0;
  /// A step of decoding goes through a segment of all heads before the next: what the processor
  /// reads ahead of one is the next one's.
  bool heads_in_turn_;
  bool split_;  // a task's segments are computed apart, by whoever is free, and merged at the end
  RowStates partials_{};
};

void check(const char* op, const AttentionInputs& in) {
  const HeadsView &q = in.queries, &tails = in.query_tails, &k = in.keys, &v = in.values;
  MOE_CHECK(q.heads > 0 && k.heads > 0 && q.heads % k.heads == 0, "[", op, "] q has ", q.heads,
            " heads and k has ", k.heads, "; a multiple of k's is required");
  MOE_CHECK(k.dim > 0 && q.dim + tails.dim == k.dim, "[", op, "] q has ", q.dim + tails.dim,
            " columns per head; k has ", k.dim);
  MOE_CHECK(v.tokens == k.tokens && v.heads == k.heads, "[", op, "] v has ", v.tokens,
            " tokens of ", v.heads, " heads; k has ", k.tokens, " of ", k.heads);
  MOE_CHECK(v.dtype == k.dtype && (v.scales == nullptr) == (k.scales == nullptr), "[", op,
            "] k and v have different dtypes; one is required");
  MOE_CHECK(in.first_position >= 0, "[", op, "] the first query stands at position ",
            in.first_position, "; at least 0 is required");
  MOE_CHECK(in.window >= 0, "[", op, "] window is ", in.window, "; at least 1 is required");
  MOE_CHECK(in.chunk >= 0, "[", op, "] chunk is ", in.chunk, "; at least 1 is required");
  MOE_CHECK(in.window == 0 || in.causal, "[", op, "] window is ", in.window,
            " without causal; a window looks back from each query");
  MOE_CHECK(in.softcap >= 0.0f, "[", op, "] softcap is ", in.softcap, "; more than 0 is required");
}

}  // namespace

void attention(const char* op, const AttentionInputs& in, float* out) {
  check(op, in);
  if (in.queries.tokens == 0 || in.values.dim == 0) return;
  const float* key_bias = nullptr;
  if (in.key_mask != nullptr) {
    float* bias = scratch_of<float>(Scratch::kTile, static_cast<size_t>(in.keys.tokens));
    for (int64_t j = 0; j < in.keys.tokens; ++j) bias[j] = in.key_mask[j] ? 0.0f : kMinusInf;
    key_bias = bias;
  }
  Tasks(in, key_bias, kernels(), out).run();
}

}  // namespace moe
