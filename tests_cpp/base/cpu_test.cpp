#include "moe/base/cpu.h"

#include <gtest/gtest.h>

#include <fstream>
#include <set>
#include <sstream>
#include <string>

namespace moe {
namespace {

// The kernel's own list hides what it does not save, so it answers the same question as we do.
std::set<std::string> flags_of_proc() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("flags", 0) != 0) continue;
    std::istringstream words(line.substr(line.find(':') + 1));
    return {std::istream_iterator<std::string>(words), {}};
  }
  return {};
}

TEST(Cpu, FeaturesAreTheKernelsFlags) {
#ifndef __x86_64__
  EXPECT_EQ(cpu_features(), 0u);
  GTEST_SKIP() << "every feature so far is x86's";
#endif
  const std::set<std::string> flags = flags_of_proc();
  if (flags.empty()) GTEST_SKIP() << "/proc/cpuinfo lists no flags here";
  const auto all = [&](std::initializer_list<const char*> names) {
    for (const char* name : names) {
      if (!flags.count(name)) return false;
    }
    return true;
  };
  const bool avx2 = all({"avx2", "fma", "f16c", "bmi1", "bmi2", "abm"});
  const bool avx512 = avx2 && all({"avx512f", "avx512bw", "avx512dq", "avx512vl"});
  const uint32_t features = cpu_features();
  EXPECT_EQ((features & kAvx2) != 0, avx2);
  EXPECT_EQ((features & kAvx512) != 0, avx512);
  EXPECT_EQ((features & kAvx512Vnni) != 0, avx512 && all({"avx512_vnni"}));
  EXPECT_EQ((features & kAvx512Bf16) != 0, avx512 && all({"avx512_bf16"}));
  EXPECT_EQ((features & kAvx512Vbmi) != 0, avx512 && all({"avx512vbmi"}));
  EXPECT_EQ((features & kAvxVnni) != 0, avx2 && all({"avx_vnni"}));
  // The operating system may still refuse tiles that the processor has.
  const bool tiles = all({"amx_tile", "amx_int8", "amx_bf16"});
  EXPECT_TRUE((features & kAmx) == 0 || tiles);
}

TEST(Cpu, NamesItself) {
  const std::string name = cpu_name();
  EXPECT_FALSE(name.empty());
  EXPECT_NE(name.back(), ' ');
  EXPECT_EQ(name.find('\0'), std::string::npos);
}

TEST(Cpu, TheLastLevelCacheHasAPlausibleSize) {
  const int64_t bytes = last_level_cache_bytes();
  if (bytes == 0) GTEST_SKIP() << "this system does not tell the sizes of its caches";
  EXPECT_GE(bytes, 64 << 10);
  EXPECT_LE(bytes, int64_t{16} << 30);
}

}  // namespace
}  // namespace moe
