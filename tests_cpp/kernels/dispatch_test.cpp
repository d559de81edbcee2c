#include <gtest/gtest.h>

#include <cstdlib>
#include <set>
#include <string>

#include "moe/base/check.h"
#include "moe/base/cpu.h"
#include "moe/kernels/table.h"

namespace moe {
namespace {

class Dispatch : public ::testing::Test {
 protected:
  void TearDown() override { set_isa(before_.c_str()); }
  const std::string before_ = kernels().name;
};

TEST_F(Dispatch, TheFirstTableRunsEverywhereAndNamesDiffer) {
  int count = 0;
  const KernelTable* const* tables = all_kernels(&count);
  ASSERT_GE(count, 1);
  EXPECT_STREQ(tables[0]->name, "scalar");
  EXPECT_TRUE(can_run(*tables[0]));
  std::set<std::string> names;
  for (int i = 0; i < count; ++i) names.insert(tables[i]->name);
  EXPECT_EQ(static_cast<int>(names.size()), count);
}

TEST_F(Dispatch, ATablesFunctionsAreItsOwn) {
  int count = 0;
  const KernelTable* const* tables = all_kernels(&count);
  std::set<const void*> seen;
  for (int i = 0; i < count; ++i) {
    seen.insert(tables[i]->gemm);
    seen.insert(reinterpret_cast<const void*>(tables[i]->rowwise->add_scaled));
    seen.insert(reinterpret_cast<const void*>(tables[i]->gemm->run[0][0]));
  }
  EXPECT_EQ(static_cast<int>(seen.size()), 3 * count);
}

TEST_F(Dispatch, SetIsaSwitchesOrSaysWhyNot) {
  int count = 0;
  const KernelTable* const* tables = all_kernels(&count);
  for (int i = 0; i < count; ++i) {
    if (can_run(*tables[i])) {
      set_isa(tables[i]->name);
      EXPECT_EQ(&kernels(), tables[i]);
    } else {
      EXPECT_THROW(set_isa(tables[i]->name), CannotRun);
    }
  }
  const KernelTable* current = &kernels();
  try {
    set_isa("altivec");
    FAIL() << "an unknown instruction set was accepted";
  } catch (const CannotRun& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("altivec"), std::string::npos) << text;
    EXPECT_NE(text.find("scalar"), std::string::npos) << text;
  }
  EXPECT_EQ(&kernels(), current);
}

// The choice is made once in a process, so each of these runs in one of its own.
class DispatchDeathTest : public ::testing::Test {
 protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

[[noreturn]] void exit_with_choice(const char* forced) {
  setenv("MOEKIT_ISA", forced, 1);
  try {
    std::fprintf(stderr, "chose %s.\n", kernels().name);
  } catch (const CannotRun& error) {
    std::fprintf(stderr, "%s\n", error.what());
    std::_Exit(3);
  }
  std::_Exit(0);
}

TEST_F(DispatchDeathTest, TheEnvironmentForcesATable) {
  int count = 0;
  const KernelTable* const* tables = all_kernels(&count);
  if (count == 1) GTEST_SKIP() << "one table leaves nothing to choose";
  std::string best;
  for (int i = 0; i < count; ++i) {
    if (!can_run(*tables[i])) continue;
    best = tables[i]->name;
    EXPECT_EXIT(exit_with_choice(tables[i]->name), ::testing::ExitedWithCode(0),
                "chose " + best + "\\.");
  }
  EXPECT_EXIT(exit_with_choice(""), ::testing::ExitedWithCode(0), "chose " + best + "\\.");
  EXPECT_EXIT(exit_with_choice("sse9"), ::testing::ExitedWithCode(3), "sse9.*known: scalar");
}

}  // namespace
}  // namespace moe
