#pragma once
// The k best of a row, best first, ties to the lower index.
//
// Regularities  k (1 to 10) is small against the row (8 to 512 experts). The k-th largest of the
//               lanes' maxima bounds the k-th largest of the row from below; what passes that
//               bound, mostly 8 to 16 values, is ranked by counting. Hardly a step depends on a
//               branch that data decide.
// Cost          one pass for the maxima, one to filter, two compares per survivor.

#include "moe/simd/vec.h"

namespace moe::MOE_ISA {

/// Below every key: such an entry is never selected.
inline constexpr int32_t kNoKey = INT32_MIN;

/// Integers in the order of the floats; x is neither NaN nor -0.
MOE_INLINE I32x16 sort_key(F32x16 x) {
  const I32x16 u = bits(x);
  return xor_bits(u, and_bits(shift_right(u, 31), set1_i32(0x7fffffff)));
}
/// The same for any x: NaN is -inf, -0 is 0.
MOE_INLINE I32x16 sort_key_of_any(F32x16 x) {
  return sort_key(add(max(x, set1(-__builtin_inff())), zero_f32()));
}
MOE_INLINE F32x16 float_of_key(I32x16 key) {
  return from_bits(xor_bits(key, and_bits(shift_right(key, 31), set1_i32(0x7fffffff))));
}

/// Which vectors of a row take part: the index of each one's first entry, ascending.
struct VectorList {
  const int32_t* first;
  int count;
};

/// Room for select_top: each holds the row's padded length + 16.
struct TopScratch {
  int32_t* keys;
  int32_t* ids;
  int32_t* order;
};

/// One step of a bitonic sort (Batcher 1968): lanes `distance` apart are put in order, ascending in
/// every other run of `block` lanes.
template <int block, int distance>
MOE_INLINE I32x16 sort_step(I32x16 a) {
  constexpr uint32_t kTakesMax = [] {
    uint32_t lanes = 0;
    for (int i = 0; i < kLanes; ++i) {
      lanes |= (((i & distance) != 0) == ((i & block) == 0) ? 1u : 0u) << i;
    }
    return lanes;
  }();
  const I32x16 other = bits(swap_lanes<distance>(from_bits(a)));
  return blend_lanes<kTakesMax>(min(a, other), max(a, other));
}

/// Sixteen keys, ascending.
MOE_INLINE I32x16 sort_sixteen(I32x16 a) {
  a = sort_step<2, 1>(a);
  a = sort_step<4, 1>(sort_step<4, 2>(a));
  a = sort_step<8, 1>(sort_step<8, 2>(sort_step<8, 4>(a)));
  return sort_step<16, 1>(sort_step<16, 2>(sort_step<16, 4>(sort_step<16, 8>(a))));
}

/// The k-th largest of sixteen keys.
MOE_INLINE int32_t kth_largest(I32x16 keys, int k) {
  int32_t sorted[kLanes];
  store_i32(sorted, sort_sixteen(keys));
  return sorted[kLanes - k];
}

/// A bound that at least k <= 16 keys reach: the k-th largest of the lanes' maxima.
MOE_INLINE int32_t bound_of_few(const int32_t* keys, VectorList vectors, int k) {
  I32x16 top = load_i32(keys + vectors.first[0]);
  for (int i = 1; i < vectors.count; ++i) top = max(top, load_i32(keys + vectors.first[i]));
  return kth_largest(top, k);
}

/// The same for k <= 64, from the maxima of 64 columns: four vectors are read side by side.
MOE_INLINE int32_t bound_of_many(const int32_t* keys, VectorList vectors, int k) {
  constexpr int kSets = 4;
  I32x16 top[kSets];
  MOE_UNROLL
  for (int s = 0; s < kSets; ++s) top[s] = load_i32(keys + vectors.first[s]);
  int i = kSets;
  for (; i + kSets <= vectors.count; i += kSets) {
    MOE_UNROLL
    for (int s = 0; s < kSets; ++s) top[s] = max(top[s], load_i32(keys + vectors.first[i + s]));
  }
  for (; i < vectors.count; ++i) top[0] = max(top[0], load_i32(keys + vectors.first[i]));
  int32_t column[kSets * kLanes];
  MOE_UNROLL
  for (int s = 0; s < kSets; ++s) store_i32(column + s * kLanes, top[s]);
  int32_t bound = INT32_MAX;
  for (const int32_t key : column) {
    const I32x16 all = set1_i32(key);
    int above = 0;
    MOE_UNROLL
    for (int s = 0; s < kSets; ++s) above += __builtin_popcount(to_bitmask(less(all, top[s])));
    const int32_t enough = above < k ? key : INT32_MAX;
    bound = enough < bound ? enough : bound;
  }
  return bound;
}

/// Ranks the first n keys in `room`, which end with a whole vector of kNoKey: room.order[r] becomes
/// the id of the r-th best. Ids ascend, so of equal keys the one that stands before wins.
MOE_INLINE void rank_by_counting(const TopScratch& room, int n) {
  if (n <= kLanes) {
    // A fixed number of steps: the loop's end would be a branch mispredicted every other row.
    const I32x16 all = load_i32(room.keys);
    int sum = 0;
    MOE_UNROLL
    for (int j = 0; j < kLanes; ++j) {
      const int above = __builtin_popcount(to_bitmask(less(set1_i32(room.keys[j]), all)));
      room.order[above] = room.ids[j];
      sum += above;
    }
    // Different keys have the ranks 0 to n - 1, and n stand above what fills the vector. Ties share
    // a rank and make the sum smaller.
    if (sum == n * (n - 1) / 2 + (kLanes - n) * n) return;
  }
  for (int j = 0; j < n; ++j) {
    const I32x16 key = set1_i32(room.keys[j]);
    int rank = 0;
    for (int i = 0; i < n; i += kLanes) {
      const I32x16 other = load_i32(room.keys + i);
      const int distance = j - i;
      const uint32_t before = distance >= kLanes ? 0xffffu
                              : distance > 0     ? (1u << distance) - 1u
                                                 : 0u;
      rank += __builtin_popcount(to_bitmask(less(key, other)) |
                                 (to_bitmask(equal(key, other)) & before));
    }
    room.order[rank] = room.ids[j];
  }
}

/// A key that at least k keys reach, or the least one where that many are not above kNoKey.
MOE_INLINE int32_t bound_of_top(const int32_t* keys, VectorList vectors, int k) {
  int32_t bound = kNoKey + 1;
  if (vectors.count > 1 && k <= 8) {
    bound = bound_of_few(keys, vectors, k);
  } else if (vectors.count > 4 && k <= 32) {
    bound = bound_of_many(keys, vectors, k);
  }
  return bound == kNoKey ? kNoKey + 1 : bound;
}

/// Copies the keys that reach the bound to room, with their indices, and a vector of kNoKey behind;
/// returns how many.
MOE_INLINE int filter_top(const int32_t* keys, VectorList vectors, int32_t bound,
                          const TopScratch& room) {
  const I32x16 least = set1_i32(bound);
  static constexpr int32_t kIota[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const I32x16 iota = load_i32(kIota);
  int n = 0;
  for (int i = 0; i < vectors.count; ++i) {
    const int32_t first = vectors.first[i];
    const I32x16 key = load_i32(keys + first);
    const uint32_t lanes = ~to_bitmask(less(key, least)) & 0xffffu;
    store_compressed(room.keys + n, key, lanes);
    store_compressed(room.ids + n, add(iota, set1_i32(first)), lanes);
    n += __builtin_popcount(lanes);
  }
  store_i32(room.keys + n, set1_i32(kNoKey));
  return n;
}

/// Indices of the k best keys into room.order; returns how many there are: k, or fewer where fewer
/// keys are above kNoKey.
static int select_top(const int32_t* keys, VectorList vectors, int k, const TopScratch& room) {
  const int n = filter_top(keys, vectors, bound_of_top(keys, vectors, k), room);
  rank_by_counting(room, n);
  return n < k ? n : k;
}

}  // namespace moe::MOE_ISA
