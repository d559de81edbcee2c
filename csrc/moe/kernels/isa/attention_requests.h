#pragma once
// Keys and values that are read next, requested in equal parts under the products that come
// before (isa/amx.h's Ahead for rows that lie apart).

#include "moe/kernels/isa/amx.h"
#include "moe/kernels/table.h"

namespace moe::MOE_ISA {

/// Two sets of rows, taken in turn: one stream of requests does not reach the bandwidth of a core.
struct Requests {
  const std::byte* at[2];
  int64_t stride[2];
  int64_t lines;  // of a row
  int64_t rows;   // that are left, of each set
  int64_t share;  // of a call

  [[gnu::always_inline]] inline void request() {
    keep_awake();
    const int64_t count = rows < share ? rows : share;
    rows -= count;
    for (int64_t i = 0; i < count; ++i) {
      prefetch_l2(at[0]);
      prefetch_l2(at[1]);
      for (int64_t line = 1; line < lines; ++line) {
        prefetch_l2(at[0] + line * kLineBytes);
        prefetch_l2(at[1] + line * kLineBytes);
      }
      at[0] += stride[0];
      at[1] += stride[1];
    }
  }
};

/// `count` keys and their values, in `parts` parts; rows that follow each other line by line.
template <class T>
MOE_INLINE Requests requests_for(const AttentionCall& call, const T* keys, const T* values,
                                 int64_t count, int64_t parts) {
  constexpr auto kBytes = static_cast<int64_t>(sizeof(T));
  const auto lines = [](int64_t bytes) { return (bytes + kLineBytes - 1) / kLineBytes; };
  Requests to{};
  if (keys == nullptr) return to;
  const bool together = values >= keys && values < keys + call.key_dim;  // latent attention
  const bool dense =
      call.key_stride == call.key_dim && (together || call.value_stride == call.value_dim);
  const int64_t wider = call.key_dim > call.value_dim ? call.key_dim : call.value_dim;
  const int64_t row_bytes = (together ? call.key_dim : wider) * kBytes;
  to.at[0] = reinterpret_cast<const std::byte*>(keys);
  to.at[1] = reinterpret_cast<const std::byte*>(values);
  if (dense) {
    const int64_t bytes = count * row_bytes / (together ? 2 : 1);
    if (together) to.at[1] = to.at[0] + bytes;
    to.stride[0] = to.stride[1] = kLineBytes;
    to.lines = 1;
    to.rows = lines(bytes);
  } else {
    to.stride[0] = call.key_stride * kBytes;
    to.stride[1] = call.value_stride * kBytes;
    to.lines = lines(row_bytes);
    to.rows = count;
  }
  to.share = (to.rows + parts - 1) / parts;
  return to;
}

}  // namespace moe::MOE_ISA
