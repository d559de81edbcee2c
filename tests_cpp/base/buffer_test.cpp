#include "moe/base/buffer.h"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <new>
#include <thread>

namespace moe {
namespace {

bool aligned(const void* p, size_t to) { return reinterpret_cast<uintptr_t>(p) % to == 0; }

TEST(Buffer, IsAlignedAndHoldsWhatWasAskedFor) {
  for (size_t bytes : {size_t{1}, size_t{63}, size_t{64}, size_t{65}, kHugePageBytes - 65,
                       kHugePageBytes - 64, kHugePageBytes - 63, kHugePageBytes - 1, kHugePageBytes,
                       kHugePageBytes + 1, 40 * kHugePageBytes - 1000}) {
    Buffer buffer(bytes);
    ASSERT_NE(buffer.data(), nullptr);
    EXPECT_GE(buffer.bytes(), bytes);
    EXPECT_TRUE(aligned(buffer.data(), bytes >= kHugePageBytes ? kHugePageBytes : kCacheLineBytes));
    EXPECT_LE(buffer.bytes(), bytes + bytes / 32 + 4096);
    std::memset(buffer.data(), 0x5a, buffer.bytes());  // the sanitizers watch the ends
  }
}

TEST(Buffer, OfNothingOwnsNothing) {
  Buffer buffer(0);
  EXPECT_EQ(buffer.data(), nullptr);
  EXPECT_EQ(buffer.bytes(), 0u);
}

TEST(Buffer, ThrowsWhereTheMemoryCannotBeHad) {
  EXPECT_THROW(Buffer(std::numeric_limits<size_t>::max()), std::bad_alloc);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  EXPECT_THROW(Buffer(size_t{1} << 60), std::bad_alloc);
#endif
}

TEST(Buffer, MovesWithoutCopying) {
  Buffer first(100);
  std::byte* memory = first.data();
  Buffer second(std::move(first));
  EXPECT_EQ(second.data(), memory);
  Buffer third(10);
  third = std::move(second);
  EXPECT_EQ(third.data(), memory);
  EXPECT_EQ(second.data(), nullptr);  // NOLINT: a moved-from buffer is empty
}

TEST(Buffer, ReserveGrowsAndNeverShrinks) {
  Buffer buffer;
  buffer.reserve(1000);
  const std::byte* memory = buffer.data();
  buffer.reserve(10);
  EXPECT_EQ(buffer.data(), memory);
  buffer.reserve(5000);
  EXPECT_GE(buffer.bytes(), 5000u);
}

TEST(Scratch, KeepsItsMemoryAndTellsSlotsAndThreadsApart) {
  float* hidden = scratch_of<float>(Scratch::kHidden, 256);
  float* rows = scratch_of<float>(Scratch::kRows, 256);
  EXPECT_NE(hidden, rows);
  EXPECT_EQ(scratch_of<float>(Scratch::kHidden, 16), hidden);  // decoding allocates nothing
  float* theirs = nullptr;
  std::thread([&] { theirs = scratch_of<float>(Scratch::kHidden, 256); }).join();
  EXPECT_NE(theirs, nullptr);
  EXPECT_NE(theirs, hidden);
}

}  // namespace
}  // namespace moe
