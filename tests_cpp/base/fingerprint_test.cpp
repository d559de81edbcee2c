#include "moe/base/fingerprint.h"

#include <gtest/gtest.h>

#include <vector>

namespace moe {
namespace {

template <class T>
Fingerprint of(const std::vector<T>& values, int64_t pieces = 16) {
  return Fingerprint(static_cast<int64_t>(values.size()), sizeof(T), pieces,
                     [&](int64_t i) -> const void* { return values.data() + i; });
}

template <class T>
void notices_each_of_few() {
  for (size_t count : {1, 2, 15, 16}) {
    std::vector<T> values(count, T{3});
    const Fingerprint print = of(values);
    EXPECT_TRUE(print.same());
    for (T& value : values) {
      value ^= T{64};
      EXPECT_FALSE(print.same());
      value ^= T{64};
      EXPECT_TRUE(print.same());
    }
  }
}

TEST(Fingerprint, NoticesAChangeOfAnyOfSixteen) {
  notices_each_of_few<uint8_t>();
  notices_each_of_few<uint16_t>();
  notices_each_of_few<uint32_t>();
  notices_each_of_few<uint64_t>();
}

TEST(Fingerprint, NoticesAChangeOfAnyWholePiece) {
  for (size_t pieces : {1, 5, 16, 70}) {
    const size_t size = 61;
    std::vector<uint16_t> values(pieces * size + pieces - 1, 7);  // the last piece has the rest
    const Fingerprint print = of(values, static_cast<int64_t>(pieces));
    for (size_t piece = 0; piece < pieces; ++piece) {
      const size_t begin = piece * size, end = piece + 1 < pieces ? begin + size : values.size();
      for (size_t i = begin; i < end; ++i) values[i] = 8;
      EXPECT_FALSE(print.same());
      for (size_t i = begin; i < end; ++i) values[i] = 7;
    }
    EXPECT_TRUE(print.same());
  }
}

TEST(Fingerprint, OfNothingNeverChanges) { EXPECT_TRUE(of(std::vector<uint32_t>{}).same()); }

}  // namespace
}  // namespace moe
