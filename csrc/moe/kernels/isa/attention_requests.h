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
  bool near;      // to L1, not only to L2

  [[gnu::always_inline]] inline void request() {
    keep_awake();
    const int64_t count = rows < share ? rows : share;
    rows -= count;
    if (near) {
      take(count, [](const std::byte* p) MOE_INLINE_LAMBDA { prefetch(p); });
    } else {
      take(count, [](const std::byte* p) MOE_INLINE_LAMBDA { prefetch_l2(p); });
    }
  }

 private:
  template <class F>
  [[gnu::always_inline]] inline void take(int64_t count, F fetch) {
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t line = 0; line < lines; ++line) {
        fetch(at[0] + line * kLineBytes);
        fetch(at[1] + line * kLineBytes);
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
  // Measured: latent attention in 16 bits a twentieth faster, all others slower.
  to.near = together && sizeof(T) == 2;
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
