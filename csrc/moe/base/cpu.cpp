#include "moe/base/cpu.h"

#include <unistd.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>

#include <cstring>
#endif

namespace moe {

#if defined(__x86_64__)

namespace {

struct Leaf {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Leaf cpuid(unsigned leaf, unsigned subleaf = 0) {
  Leaf r;
  if (__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx) == 0) return {};
  return r;
}

// Which register state the operating system saves when it switches threads.
uint64_t saved_state() {
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

bool has(unsigned word, unsigned bit) { return (word >> bit) & 1u; }

// Tiles are 8 KB of state that a process has to ask for: arch_prctl(ARCH_REQ_XCOMP_PERM,
// XTILEDATA), Linux 5.16.
bool tiles_granted() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

uint32_t cpu_features() {
  const Leaf one = cpuid(1);
  if (!has(one.ecx, 27)) return 0;  // OSXSAVE: without it xgetbv itself is illegal
  const uint64_t state = saved_state();
  const Leaf seven = cpuid(7);
  const Leaf seven_one = cpuid(7, 1);
  const Leaf extended = cpuid(0x80000001u);

  uint32_t features = 0;
  const bool ymm_saved = (state & 0x6) == 0x6;
  const bool zmm_saved = (state & 0xe6) == 0xe6;
  if (ymm_saved && has(one.ecx, 12) && has(one.ecx, 28) && has(one.ecx, 29) && has(seven.ebx, 5) &&
      has(seven.ebx, 3) && has(seven.ebx, 8) && has(extended.ecx, 5)) {
    features |= kAvx2;
    if (has(seven_one.eax, 4)) features |= kAvxVnni;
  }
  if ((features & kAvx2) && zmm_saved && has(seven.ebx, 16) && has(seven.ebx, 17) &&
      has(seven.ebx, 30) && has(seven.ebx, 31)) {
    features |= kAvx512;
    if (has(seven.ecx, 1)) features |= kAvx512Vbmi;
    if (has(seven.ecx, 8)) features |= kGfni;
    if (has(seven.ecx, 11)) features |= kAvx512Vnni;
    if (has(seven_one.eax, 5)) features |= kAvx512Bf16;
    const bool tiles_saved = (state & 0x60000) == 0x60000;
    if (tiles_saved && has(seven.edx, 22) && has(seven.edx, 24) && has(seven.edx, 25) &&
        tiles_granted()) {
      features |= kAmx;
    }
  }
  return features;
}

std::string cpu_name() {
  char name[49] = {};
  for (unsigned i = 0; i < 3; ++i) {
    const Leaf r = cpuid(0x80000002u + i);
    std::memcpy(name + 16 * i, &r, sizeof(r));
  }
  const std::string text(name);
  const size_t end = text.find_last_not_of(' ');
  return end == std::string::npos ? "unknown" : text.substr(0, end + 1);
}

#else

uint32_t cpu_features() { return 0; }
std::string cpu_name() { return "unknown"; }

#endif

int64_t last_level_cache_bytes() {
  int64_t largest = 0;
#ifdef _SC_LEVEL3_CACHE_SIZE  // glibc's; other C libraries do not tell
  for (const int name : {_SC_LEVEL2_CACHE_SIZE, _SC_LEVEL3_CACHE_SIZE, _SC_LEVEL4_CACHE_SIZE}) {
    const int64_t bytes = sysconf(name);
    largest = bytes > largest ? bytes : largest;
  }
#endif
  return largest;
}

}  // namespace moe
