// The block, gate · up · activate · down · combine, for every shape, format and number of tokens.

#include <cstdio>
#include <memory>
#include <optional>
#include <string>

#include "layer.h"
#include "measure.h"
#include "moe/ops/compute.h"

namespace moe::bench {

namespace {

constexpr int64_t kTokens[] = {1, 4, 16, 64, 512};
constexpr int kRoutings = 16;
constexpr int64_t kFewestRuns = 3;

// The last layer that was asked for: one at a time fits into memory, and the lines of one follow
// each other.
Layer& layer_of(const Shape& shape, Format format, int64_t memory_bytes) {
  static std::optional<Layer> layer;
  if (!layer || layer->shape().name != shape.name || layer->format() != format) {
    layer.reset();
    layer.emplace(shape, format, memory_bytes);
    if (layer->resident() < shape.experts) {
      std::fprintf(stderr, "%s %s: %ld experts share the memory of %ld, %.1f GiB\n", shape.name,
                   std::string(format_info(format).name).c_str(), shape.experts, layer->resident(),
                   static_cast<double>(layer->resident() * shape.expert_bytes(format)) / (1 << 30));
    }
  }
  return *layer;
}

void block(benchmark::State& state, const Shape& shape, Format format, Compute compute,
           int64_t tokens, int64_t memory_bytes) {
  const Layer& layer = layer_of(shape, format, memory_bytes);
  const std::vector<Routing> routings = layer.routings(tokens, kRoutings);
  const std::vector<float> x = random_values(tokens * shape.hidden, 4);
  std::vector<float> out(x.size());
  const MatrixView<const float> in(x.data(), tokens, shape.hidden);
  const MatrixView<float> to(out.data(), tokens, shape.hidden);
  const ExpertBank bank = layer.bank();
  moe_ffn(in, routings.back().view(), bank, nullptr, compute, to);  // wakes threads, sizes scratch

  Meter meter(choose_dot(format, compute, shape.inter, shape.hidden));
  // A run of seconds satisfies the harness at once; a median needs more than one.
  const int64_t runs_per_iteration =
      (kFewestRuns + state.max_iterations - 1) / state.max_iterations;
  double touched = 0.0;
  for (auto _ : state) {
    double seconds = 0.0;
    for (int64_t i = 0; i < runs_per_iteration; ++i) {
      const Routing& routing = routings[meter.runs() % kRoutings];
      touched += static_cast<double>(routing.touched);
      const auto run = [&] { moe_ffn(in, routing.view(), bank, nullptr, compute, to); };
      seconds += meter.time(run);
    }
    state.SetIterationTime(seconds / static_cast<double>(runs_per_iteration));
  }
  const double experts = touched / static_cast<double>(meter.runs());
  meter.report(state, experts * static_cast<double>(shape.expert_bytes(format)),
               shape.operations(tokens));
}

void add(const Shape& shape, Format format, Compute compute, const char* suffix, int64_t tokens,
         const Options& options) {
  const std::string name = std::string("block/") + shape.name + "/" +
                           std::string(format_info(format).name) + suffix +
                           "/tokens:" + std::to_string(tokens);
  const int64_t memory = options.memory_bytes;
  const auto run = [=, &shape](benchmark::State& state) {
    block(state, shape, format, compute, tokens, memory);
  };
  benchmark::RegisterBenchmark(name.c_str(), run)
      ->UseManualTime()
      ->Unit(benchmark::kMillisecond)
      ->MinTime(options.quick ? 0.05 : 0.5);
}

}  // namespace

void register_blocks(const Options& options) {
  for (const Shape& shape : kShapes) {
    if (options.quick && std::string_view(shape.name) != "olmoe-1b-7b") continue;
    for (int f = 0; f < kFormatCount; ++f) {
      const auto format = static_cast<Format>(f);
      for (const int64_t tokens : kTokens) {
        if (options.quick && tokens != 1 && tokens != 16 && tokens != 512) continue;
        add(shape, format, Compute::kAuto, "", tokens, options);
      }
    }
  }
}

}  // namespace moe::bench
