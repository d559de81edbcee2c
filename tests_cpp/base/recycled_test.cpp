#include "moe/base/recycled.h"

#include <gtest/gtest.h>

#include <cstring>
#include <thread>
#include <vector>

namespace moe {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

TEST(Recycled, IsTakenWhereItFitsClosely) {
  Buffer first = take_recycled(5 * kMiB);
  const std::byte* at = first.data();
  std::memset(first.data(), 1, first.bytes());
  give_back(std::move(first));
  const size_t before = recycled_bytes();
  EXPECT_GE(before, 5 * kMiB);
  EXPECT_NE(take_recycled(6 * kMiB).data(), at);  // too small
  EXPECT_NE(take_recycled(3 * kMiB).data(), at);  // too much would lie idle
  Buffer again = take_recycled(5 * kMiB - 100);
  EXPECT_EQ(again.data(), at);
  EXPECT_GE(again.bytes(), 5 * kMiB - 100);
  EXPECT_LT(recycled_bytes(), before);
}

TEST(Recycled, KeepsNoMoreThanItSays) {
  std::vector<Buffer> held;
  for (int i = 0; i < 40; ++i) held.push_back(take_recycled(7 * kMiB));
  for (Buffer& buffer : held) give_back(std::move(buffer));
  EXPECT_LE(recycled_bytes(), kMostRecycledBytes);
  EXPECT_GE(recycled_bytes(), kMostRecycledBytes - 8 * kMiB);
  for (int i = 0; i < 200; ++i) give_back(Buffer(kMiB));
  EXPECT_LE(recycled_bytes(), kMostRecycledBytes);
  const size_t before = recycled_bytes();
  give_back(Buffer(kMostRecycledBytes));
  give_back(Buffer(1000));
  give_back(Buffer());
  EXPECT_EQ(recycled_bytes(), before);
}

TEST(Recycled, GivesNobodyWhatAnotherHolds) {
  const auto work = [](unsigned char mark) {
    for (int round = 0; round < 200; ++round) {
      Buffer buffer = take_recycled(kMiB + mark * size_t{1000});
      std::memset(buffer.data(), mark, 4096);
      std::this_thread::yield();
      for (int i = 0; i < 4096; ++i) {
        ASSERT_EQ(buffer.as<unsigned char>()[i], mark);
      }
      give_back(std::move(buffer));
    }
  };
  std::vector<std::thread> threads;
  for (unsigned char mark = 1; mark <= 4; ++mark) threads.emplace_back(work, mark);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace moe
