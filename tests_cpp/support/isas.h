#pragma once
// Walks through the instruction sets that this machine runs.

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "moe/kernels/table.h"

namespace moe::testing {

inline std::vector<std::string> runnable_isas() {
  int count = 0;
  const KernelTable* const* tables = all_kernels(&count);
  std::vector<std::string> names;
  for (int i = 0; i < count; ++i) {
    if (can_run(*tables[i])) names.emplace_back(tables[i]->name);
  }
  return names;
}

/// A test with one instance for every instruction set; it runs on that one, and the choice made at
/// start is put back afterwards.
class EveryIsa : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    before_ = kernels().name;
    set_isa(GetParam().c_str());
    ASSERT_EQ(GetParam(), kernels().name);
  }
  void TearDown() override { set_isa(before_.c_str()); }

 private:
  std::string before_;
};

}  // namespace moe::testing

#define MOE_EVERY_ISA(Suite)                                                                 \
  INSTANTIATE_TEST_SUITE_P(Isa, Suite, ::testing::ValuesIn(::moe::testing::runnable_isas()), \
                           [](const auto& isa) { return isa.param; })
