#include "moe/base/parallel.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "moe/base/check.h"

namespace moe {
namespace {

// Three threads whatever the machine has, so that teams are odd and cores are shared.
class Parallel : public ::testing::Test {
 protected:
  void SetUp() override { set_num_threads(3); }
  void TearDown() override { set_num_threads(before_); }
  const int before_ = num_threads();
};

TEST_F(Parallel, EveryMemberOfTheTeamRunsOnce) {
  for (int asked : {1, 2, 3, 8}) {
    std::atomic<int> runs[8] = {};
    std::atomic<int> size{0};
    const auto body = [&](Team& team) {
      size = team.size;
      ++runs[team.index];
    };
    parallel(asked, body);
    EXPECT_GE(size.load(), 1);
    EXPECT_LE(size.load(), std::min(asked, 3));
    for (int i = 0; i < 8; ++i) EXPECT_EQ(runs[i].load(), i < size ? 1 : 0);
  }
}

TEST_F(Parallel, RunsCoverAllOnceAndShrink) {
  for (int64_t count : {0, 1, 2, 7, 32, 1000}) {
    std::vector<std::atomic<int>> taken(static_cast<size_t>(count));
    RunQueue runs(count, 3);
    const auto body = [&](Team&) {
      for (auto run = runs.take(); run.begin < run.end; run = runs.take()) {
        EXPECT_LE(run.end - run.begin, std::max<int64_t>(1, (count - run.begin) / 6));
        for (int64_t i = run.begin; i < run.end; ++i) ++taken[static_cast<size_t>(i)];
      }
    };
    parallel(3, body);
    for (const auto& times : taken) EXPECT_EQ(times.load(), 1);
    EXPECT_EQ(runs.next(), count);
  }
}

TEST_F(Parallel, NobodyPassesABarrierBeforeAllHaveCome) {
  constexpr int kRounds = 50;
  std::atomic<int> arrived{0}, early{0};
  const auto body = [&](Team& team) {
    for (int round = 1; round <= kRounds; ++round) {
      ++arrived;
      team.barrier();
      if (arrived.load() < round * team.size) ++early;
      team.barrier();
    }
  };
  parallel(3, body);
  EXPECT_EQ(early.load(), 0);
}

// A team that is smaller than the last one, with any number of barriers, between larger ones.
TEST_F(Parallel, TeamsOfEverySizeMeetAtTheirOwnBarriers) {
  set_num_threads(5);
  for (int repeat = 0; repeat < 3; ++repeat) {
    for (int asked : {5, 2, 4, 1, 3}) {
      for (int rounds : {0, 1, 2, 7}) {
        std::atomic<int> arrived{0}, early{0}, runs{0}, size{0};
        const auto body = [&](Team& team) {
          ++runs;
          size = team.size;
          for (int round = 1; round <= rounds; ++round) {
            ++arrived;
            team.barrier();
            if (arrived.load() < round * team.size) ++early;
            team.barrier();
          }
        };
        parallel(asked, body);
        EXPECT_EQ(early.load(), 0);
        EXPECT_EQ(runs.load(), size.load());
        EXPECT_LE(size.load(), asked);
        EXPECT_EQ(arrived.load(), rounds * size.load());
      }
    }
  }
}

std::set<std::string> thread_ids() {
  std::set<std::string> ids;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task")) {
    ids.insert(entry.path().filename());
  }
  return ids;
}

TEST_F(Parallel, SmallerTeamsEndNoThread) {
  set_num_threads(5);
  const auto nothing = [](Team&) {};
  parallel(5, nothing);
  const auto before = thread_ids();
  for (int asked : {2, 5, 3, 4, 1, 5}) {
    parallel(asked, nothing);
    EXPECT_EQ(thread_ids(), before) << asked;
  }
}

TEST_F(Parallel, ALimitHoldsForItsThreadAlone) {
  {
    const ThreadLimit two(2);
    EXPECT_EQ(num_threads(), 2);
    {
      const ThreadLimit none(0), one(1);
      EXPECT_EQ(num_threads(), 1);
      std::thread([] { EXPECT_EQ(num_threads(), 3); }).join();
    }
    const ThreadLimit many(64);
    EXPECT_EQ(num_threads(), 3);
  }
  EXPECT_EQ(num_threads(), 3);
}

TEST_F(Parallel, ForVisitsEveryIndexOnce) {
  for (int64_t count : {0, 1, 2, 7, 64, 1000}) {
    for (int64_t grain : {1, 3, 64, 5000}) {
      std::vector<std::atomic<int>> visits(static_cast<size_t>(count));
      std::atomic<bool> fits{true};
      const auto body = [&](int64_t begin, int64_t end) {
        if (begin >= end || end - begin > grain) fits = false;
        for (int64_t i = begin; i < end; ++i) ++visits[static_cast<size_t>(i)];
      };
      parallel_for(count, grain, body);
      EXPECT_TRUE(fits.load());
      for (const auto& visited : visits) ASSERT_EQ(visited.load(), 1) << count << " by " << grain;
    }
  }
}

TEST_F(Parallel, SeveralCallersAtOnceDoNotDisturbEachOther) {
  std::atomic<int64_t> sums[4] = {};
  std::vector<std::thread> callers;
  for (auto& sum : sums) {
    callers.emplace_back([&sum] {
      for (int repeat = 0; repeat < 20; ++repeat) {
        const auto body = [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) sum += i;
        };
        parallel_for(100, 7, body);
      }
    });
  }
  for (auto& caller : callers) caller.join();
  for (const auto& sum : sums) EXPECT_EQ(sum.load(), 20 * 4950);
}

// A forked child has none of its parent's threads; waiting for them would hang for ever.
TEST_F(Parallel, AForkedChildWorksOnOneThread) {
  std::atomic<int> sum{0};
  const auto add = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) sum += static_cast<int>(i);
  };
  parallel_for(100, 1, add);  // the parent's team exists before the fork
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    alarm(20);
    sum = 0;
    int size = 0;
    const auto body = [&](Team& team) {
      size = team.size;
      team.barrier();
    };
    parallel(3, body);
    parallel_for(100, 1, add);
    _exit(num_threads() == 1 && size == 1 && sum == 4950 ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status)) << "the child was killed by signal " << WTERMSIG(status);
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_EQ(num_threads(), 3);  // the parent keeps its own
}

TEST_F(Parallel, RefusesImpossibleThreadCounts) {
  for (int threads : {0, -1, 1025}) {
    try {
      set_num_threads(threads);
      FAIL() << threads << " threads were accepted";
    } catch (const ValueError& error) {
      EXPECT_NE(std::string(error.what()).find(std::to_string(threads)), std::string::npos);
    }
    EXPECT_EQ(num_threads(), 3);
  }
  set_num_threads(1024);
  EXPECT_EQ(num_threads(), 1024);
}

}  // namespace
}  // namespace moe
