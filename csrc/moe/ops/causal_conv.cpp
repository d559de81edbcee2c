#include "moe/ops/causal_conv.h"

#include <algorithm>
#include <cstring>

#include "moe/base/check.h"
#include "moe/base/parallel.h"
#include "moe/kernels/table.h"

namespace moe {

namespace {

constexpr int64_t kMostTaps = 64;

}  // namespace

void causal_conv(MatrixView<const float> x, const ConvParts& parts, float* out, float* new_state) {
  MOE_CHECK(parts.taps >= 1 && parts.taps <= kMostTaps, "[causal_conv] weight has ", parts.taps,
            " taps; 1 to ", kMostTaps, " are possible");
  const int64_t channels = x.cols, before = parts.taps - 1;
  const auto bytes = static_cast<size_t>(channels) * sizeof(float);
  const auto kernel = kernels().recurrence->convolve;
  // What lies before the first token when there is no state: never written, so one row serves all.
  float* zeros = new_state;
  if (parts.state == nullptr && before > 0) std::memset(zeros, 0, bytes);
  const auto input = [&](int64_t t) {
    if (t >= 0) return x.row(t);
    return parts.state == nullptr ? zeros : parts.state + (before + t) * channels;
  };
  const auto piece = [&](int64_t begin, int64_t end) {
    const float* inputs[kMostTaps];
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t w = 0; w <= before; ++w) inputs[w] = input(t - before + w);
      kernel({inputs, parts.weight, parts.bias, static_cast<int>(parts.taps), parts.activation,
              channels, out + t * channels});
    }
  };
  // Some 64 thousand multiplications per task: less is not worth waking a thread for.
  const int64_t work = std::max<int64_t>(1, channels * parts.taps);
  parallel_for(x.rows, std::max<int64_t>(1, (1 << 16) / work), piece);
  for (int64_t w = before - 1; w >= 0; --w) {  // the row of zeros is the first one: last
    const float* from = input(x.rows - before + w);
    if (from != new_state + w * channels) std::memcpy(new_state + w * channels, from, bytes);
  }
}

}  // namespace moe
