#pragma once
// Runs in turn with measurements of the machine's limits, and what a line of the table says of
// them.

#include <benchmark/benchmark.h>

#include <vector>

#include "moe/base/parallel.h"
#include "moe/ops/limits.h"

namespace moe::bench {

/// The clock of everything that follows; to be called before anything is measured.
void use_clock(Clock clock);

/// One for the whole run: its memory is allocated and touched once.
LimitProbe& limit_probe();

/// Collects what is measured within one benchmark and reports it as counters.
class Meter {
 public:
  explicit Meter(Dot dot) : dot_(dot) {}

  /// Times `run`, after measuring the limits if the runs since the last time took longer than that.
  /// Returns seconds.
  double time(FunctionRef<void()> run);
  /// min, median and p99, rates at the median, and the share of the limit
  ///   max(bytes / read bandwidth, operations / multiply peak) / time.
  void report(benchmark::State& state, double bytes, double operations) const;
  size_t runs() const { return times_.size(); }

 private:
  Dot dot_;
  double since_probe_ = 1e9;
  double probe_seconds_ = 0.0;
  std::vector<double> times_, bandwidths_, peaks_;
};

/// What main() has read from the command line.
struct Options {
  bool quick = false;
  int64_t memory_bytes = int64_t{1} << 30;
};

void register_limits();
void register_blocks(const Options& options);
void register_routers(const Options& options);

}  // namespace moe::bench
