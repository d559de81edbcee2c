// moe_bench: every line says what share of the machine's limits it reached, and those limits are
// measured in turn with what is timed.
//
//   moe_bench --quick                                        one shape, three batch sizes
//   moe_bench --benchmark_filter=block/mixtral.*/bf16        a part of the table
//   moe_bench --benchmark_out=table.json                     for further use
//   moe_bench --memory-gib=4                                 more of the experts resident
//   moe_bench --clock=cpu                                    processor time, on a busy machine
//   MOEKIT_ISA=avx2 MOEKIT_NUM_THREADS=1 moe_bench --quick

#include <benchmark/benchmark.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "measure.h"
#include "moe/base/cpu.h"
#include "moe/kernels/table.h"

int main(int argc, char** argv) {
  using namespace moe;
  bench::Options options;
  // A table by default; a flag given by the user comes later and wins.
  std::string tabular = "--benchmark_counters_tabular=true";
  std::vector<char*> rest = {argv[0], tabular.data()};
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    constexpr std::string_view kMemory = "--memory-gib=";
    if (argument == "--quick") {
      options.quick = true;
    } else if (argument == "--clock=cpu") {
      bench::use_clock(Clock::kProcessor);
    } else if (argument.substr(0, kMemory.size()) == kMemory) {
      const double gib = std::atof(argv[i] + kMemory.size());
      if (!(gib > 0.0 && gib < 1e6)) {
        std::fprintf(stderr, "moe_bench: %s; more than 0 GiB are required\n", argv[i]);
        return 2;
      }
      options.memory_bytes = static_cast<int64_t>(gib * (1 << 30));
    } else {
      rest.push_back(argv[i]);
    }
  }
  int count = static_cast<int>(rest.size());
  benchmark::Initialize(&count, rest.data());
  if (benchmark::ReportUnrecognizedArguments(count, rest.data())) return 2;
  try {
    benchmark::AddCustomContext("isa", kernels().name);
    benchmark::AddCustomContext("cpu", cpu_name());
    benchmark::AddCustomContext("threads", std::to_string(num_threads()));
    bench::register_limits();
    bench::register_blocks(options);
    bench::register_routers(options);
    benchmark::RunSpecifiedBenchmarks();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "moe_bench: %s\n", error.what());
    return 2;
  }
  benchmark::Shutdown();
  return 0;
}
