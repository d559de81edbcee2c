#include <atomic>
#include <cstdlib>
#include <string>
#include <string_view>

#include "moe/base/check.h"
#include "moe/base/cpu.h"
#include "moe/kernels/table.h"

namespace moe {

#define MOE_ISA_ROW(isa, needs)    \
  namespace isa {                  \
  extern const KernelTable kTable; \
  }
#include "moe_isas.inc"
#undef MOE_ISA_ROW

namespace {

const KernelTable* const kTables[] = {
#define MOE_ISA_ROW(isa, needs) &isa::kTable,
#include "moe_isas.inc"
#undef MOE_ISA_ROW
};

constexpr uint32_t kNeeds[] = {
#define MOE_ISA_ROW(isa, needs) needs,
#include "moe_isas.inc"
#undef MOE_ISA_ROW
};

constexpr int kTableCount = sizeof(kTables) / sizeof(kTables[0]);

uint32_t needs(const KernelTable& table) {
  for (int i = 0; i < kTableCount; ++i) {
    if (kTables[i] == &table) return kNeeds[i];
  }
  return ~0u;
}

const KernelTable* find(std::string_view name) {
  std::string known;
  for (const KernelTable* table : kTables) {
    if (name == table->name) {
      if (!can_run(*table)) {
        throw CannotRun(message("[isa] '", name, "' was asked for; this processor cannot run it"));
      }
      return table;
    }
    known += known.empty() ? "" : ", ";
    known += table->name;
  }
  throw CannotRun(
      message("[isa] '", name, "' is not an instruction set of this build; known: ", known));
}

const KernelTable* choose() {
  const char* forced = std::getenv("MOEKIT_ISA");
  if (forced != nullptr && *forced != '\0') return find(forced);
  const KernelTable* best = kTables[0];
  for (const KernelTable* table : kTables) {
    if (can_run(*table)) best = table;
  }
  return best;
}

std::atomic<const KernelTable*> g_table{nullptr};

}  // namespace

bool can_run(const KernelTable& table) {
  static const uint32_t have = cpu_features();
  return (needs(table) & ~have) == 0;
}

const KernelTable& kernels() {
  const KernelTable* table = g_table.load(std::memory_order_acquire);
  if (table == nullptr) {
    table = choose();
    g_table.store(table, std::memory_order_release);
  }
  return *table;
}

void set_isa(const char* name) { g_table.store(find(name), std::memory_order_release); }

const KernelTable* const* all_kernels(int* count) {
  *count = kTableCount;
  return kTables;
}

}  // namespace moe
