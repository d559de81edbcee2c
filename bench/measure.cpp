#include "measure.h"

#include <algorithm>

namespace moe::bench {

namespace {

Clock g_clock = Clock::kWall;

double now() { return clock_seconds(g_clock); }

double quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(q * static_cast<double>(values.size() - 1) + 0.5)];
}

// Limits alone, as lines of their own: what the rest of the table is held against.
void limits(benchmark::State& state, int dot) {
  std::vector<double> values;
  limit_probe();  // its memory is made before anything is timed
  for (auto _ : state) {
    const double start = now();
    values.push_back(dot < 0 ? limit_probe().read_bandwidth()
                             : limit_probe().multiply_peak(static_cast<Dot>(dot)));
    state.SetIterationTime(now() - start);
  }
  state.counters[dot < 0 ? "bytes/s" : "ops/s"] = quantile(values, 0.5);
  state.counters["best/s"] = quantile(values, 1.0);
}

}  // namespace

void use_clock(Clock clock) { g_clock = clock; }

LimitProbe& limit_probe() {
  static LimitProbe probe(0, g_clock);
  return probe;
}

double Meter::time(FunctionRef<void()> run) {
  if (since_probe_ >= probe_seconds_) {
    const double start = now();
    bandwidths_.push_back(limit_probe().read_bandwidth());
    peaks_.push_back(limit_probe().multiply_peak(dot_));
    probe_seconds_ = now() - start;
    since_probe_ = 0.0;
  }
  const double start = now();
  run();
  const double seconds = now() - start;
  times_.push_back(seconds);
  since_probe_ += seconds;
  return seconds;
}

void Meter::report(benchmark::State& state, double bytes, double operations) const {
  const double median = quantile(times_, 0.5);
  const double bandwidth = quantile(bandwidths_, 0.5), peak = quantile(peaks_, 0.5);
  const double reading = bytes / bandwidth, multiplying = operations / peak;
  state.counters["min_ms"] = 1e3 * quantile(times_, 0.0);
  state.counters["p50_ms"] = 1e3 * median;
  state.counters["p99_ms"] = 1e3 * quantile(times_, 0.99);
  state.counters["bytes/s"] = bytes / median;
  state.counters["ops/s"] = operations / median;
  state.counters["limit_bytes/s"] = bandwidth;
  state.counters["limit_ops/s"] = peak;
  state.counters["of_limit"] = std::max(reading, multiplying) / median;
  state.counters["runs"] = static_cast<double>(times_.size());
  state.SetLabel(reading >= multiplying ? "read" : "multiply");
}

void register_limits() {
  const auto add = [](const char* name, int dot) {
    benchmark::RegisterBenchmark(name, limits, dot)->UseManualTime()->Unit(benchmark::kMillisecond);
  };
  add("limits/read", -1);
  add("limits/multiply/f32", static_cast<int>(Dot::kF32));
  add("limits/multiply/bf16", static_cast<int>(Dot::kBf16));
  add("limits/multiply/u8s8", static_cast<int>(Dot::kU8S8));
}

}  // namespace moe::bench
