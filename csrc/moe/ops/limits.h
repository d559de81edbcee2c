#pragma once
// What this machine can do at best, in the instruction set and with the threads in use: how fast it
// reads memory and how fast it multiplies. A product of weights can take no less time than
// max(bytes / read bandwidth, operations / multiply peak) (Williams et al. 2009, "Roofline").

#include <cstdint>

#include "moe/base/buffer.h"
#include "moe/quant/format.h"

namespace moe {

/// What measurements are read from.
enum class Clock : uint8_t {
  kWall,
  /// The process's processor time divided by its threads: what the time would be without the other
  /// programs that a busy machine runs meanwhile. Blind to threads that wait asleep.
  kProcessor,
};
/// Seconds of that clock, from some start.
double clock_seconds(Clock clock);

/// Single measurements, to be taken between runs of what is compared with them: the memory of a
/// shared machine is twice as fast in one minute as in the next. One thread at a time.
class LimitProbe {
 public:
  /// Allocates and touches what the reads go through: `bytes`, by default eight times the last
  /// level cache and at least 256 MiB. Throws ValueError below 1 MiB, std::bad_alloc.
  explicit LimitProbe(int64_t bytes = 0, Clock clock = Clock::kWall);

  int64_t bytes() const { return static_cast<int64_t>(buffer_.bytes()); }
  /// One pass over the buffer by all threads: bytes per second.
  double read_bandwidth();
  /// A few milliseconds of dot products from registers by all threads: operations per second, a
  /// multiply-add counted as two.
  double multiply_peak(Dot dot);

 private:
  Buffer buffer_;
  Clock clock_;
  int64_t rounds_[kDotKinds] = {};  // of the probe kernel in one measurement; 0: not yet known
};

/// A figure over several passes.
struct Measured {
  double median = 0.0;
  double best = 0.0;
};

struct Limits {
  int threads = 0;
  Measured read_bandwidth;            // bytes per second
  Measured multiply_peak[kDotKinds];  // operations per second
};

/// `passes` rounds of all measurements in turn. Throws ValueError unless passes >= 1, and as
/// LimitProbe does.
Limits measure_limits(int64_t bytes = 0, int passes = 7, Clock clock = Clock::kWall);

}  // namespace moe
