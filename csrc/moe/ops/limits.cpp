#include "moe/ops/limits.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <ctime>
#include <vector>

#include "moe/base/check.h"
#include "moe/base/cpu.h"
#include "moe/base/parallel.h"
#include "moe/kernels/table.h"

namespace moe {

namespace {

constexpr int64_t kTaskBytes = int64_t{1} << 20;
constexpr double kMultiplySeconds = 4e-3;

Measured summary(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return {(values[(n - 1) / 2] + values[n / 2]) / 2, values.back()};
}

// How many rounds take `seconds`, on one thread: where the processors are busy, a team may take
// longer to start than the rounds do, and a single run may stand still for longer.
int64_t rounds_for(float (*multiply)(int64_t) noexcept, double seconds) {
  for (int64_t rounds = 64;; rounds *= 2) {
    double fastest = seconds;
    for (int i = 0; i < 3; ++i) {
      const double start = clock_seconds(Clock::kWall);
      // Never true; without a use of the result there would be nothing to time.
      if (multiply(rounds) < 0.0f) return 1;
      fastest = std::min(fastest, clock_seconds(Clock::kWall) - start);
    }
    if (fastest >= seconds) return rounds;
  }
}

}  // namespace

double clock_seconds(Clock clock) {
  timespec now{};
  clock_gettime(clock == Clock::kWall ? CLOCK_MONOTONIC : CLOCK_PROCESS_CPUTIME_ID, &now);
  const double seconds = static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
  return clock == Clock::kWall ? seconds : seconds / num_threads();
}

LimitProbe::LimitProbe(int64_t bytes, Clock clock) : clock_(clock) {
  if (bytes == 0) {
    bytes = std::max<int64_t>(int64_t{256} << 20, 8 * last_level_cache_bytes());
  }
  MOE_CHECK(bytes >= kTaskBytes, "[limits] ", bytes, " bytes to read; at least ", kTaskBytes,
            " are required");
  buffer_ = Buffer(static_cast<size_t>(bytes / kTaskBytes * kTaskBytes));
  const auto touch = [&](int64_t begin, int64_t end) {
    std::memset(buffer_.data() + begin, 1, static_cast<size_t>(end - begin));
  };
  parallel_for(this->bytes(), kTaskBytes, touch);
}

double LimitProbe::read_bandwidth() {
  std::atomic<uint32_t> sink{0};
  const ProbeKernels& probe = *kernels().probe;
  const auto pass = [&](int64_t begin, int64_t end) {
    sink.fetch_add(probe.read(buffer_.data() + begin, end - begin), std::memory_order_relaxed);
  };
  const double start = clock_seconds(clock_);
  parallel_for(bytes(), kTaskBytes, pass);
  return static_cast<double>(bytes()) / (clock_seconds(clock_) - start);
}

double LimitProbe::multiply_peak(Dot dot) {
  const auto kind = static_cast<size_t>(dot);
  const ProbeKernels& probe = *kernels().probe;
  if (rounds_[kind] == 0) rounds_[kind] = rounds_for(probe.multiply[kind], kMultiplySeconds);
  const int64_t rounds = rounds_[kind];
  std::atomic<int> sink{0};
  std::atomic<int64_t> threads{0};
  const auto work = [&](Team&) {
    sink.fetch_add(probe.multiply[kind](rounds) > 0.0f, std::memory_order_relaxed);
    threads.fetch_add(1, std::memory_order_relaxed);
  };
  const double start = clock_seconds(clock_);
  parallel(num_threads(), work);
  const auto operations = static_cast<double>(threads.load() * rounds * probe.operations[kind]);
  return operations / (clock_seconds(clock_) - start);
}

Limits measure_limits(int64_t bytes, int passes, Clock clock) {
  MOE_CHECK(passes >= 1, "[limits] ", passes, " passes; at least 1 is required");
  LimitProbe probe(bytes, clock);
  std::vector<double> read, multiply[kDotKinds];
  probe.read_bandwidth();  // wakes the threads
  for (int i = 0; i < passes; ++i) {
    read.push_back(probe.read_bandwidth());
    for (int d = 0; d < kDotKinds; ++d) {
      multiply[d].push_back(probe.multiply_peak(static_cast<Dot>(d)));
    }
  }
  Limits limits;
  limits.threads = num_threads();
  limits.read_bandwidth = summary(std::move(read));
  for (int d = 0; d < kDotKinds; ++d) limits.multiply_peak[d] = summary(std::move(multiply[d]));
  return limits;
}

}  // namespace moe
