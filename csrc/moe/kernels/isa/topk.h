#pragma once
// The k best of a row, best first, ties to the lower index.
//
// Regularities  k (1 to 10) is small against the row (8 to 512 experts). The k-th largest of the
//               lanes' maxima bounds the k-th largest of the row from below; what passes that
//               bound, mostly 8 to 16 values, is ranked by counting. No step depends on a branch
//               that data decide.
// Cost          one pass for the maxima, one to filter, two compares per survivor.

#include "moe/simd/vec.h"

namespace moe::MOE_ISA {

/// Below every key: such an entry is never selected.
inline constexpr int32_t kNoKey = INT32_MIN;

/// Integers in the order of the floats; -0 equals 0, NaN is -inf.
MOE_INLINE I32x16 sort_key(F32x16 x) {
  const F32x16 numbers = add(max(x, set1(-__builtin_inff())), zero_f32());
  const I32x16 u = bits(numbers);
  return xor_bits(u, and_bits(shift_right(u, 31), set1_i32(0x7fffffff)));
}
MOE_INLINE int32_t sort_key(float x) {
  const float number = x != x ? -__builtin_inff() : x + 0.0f;
  int32_t u;
  std::memcpy(&u, &number, 4);
  return u ^ ((u >> 31) & 0x7fffffff);
}

/// Room for select_top: each holds the row's padded length + 16.
struct TopScratch {
  int32_t* keys;
  int32_t* ids;
  int32_t* order;
};

/// A bound that at least k keys reach, from the maxima of 16 · sets columns.
template <int sets>
MOE_INLINE int32_t lower_bound_of_top(const int32_t* keys, int padded, int k) {
  I32x16 top[sets];
  MOE_UNROLL
  for (int s = 0; s < sets; ++s) top[s] = load_i32(keys + s * kLanes);
  for (int i = sets * kLanes; i < padded; i += kLanes) {
    // The last, incomplete round falls into the first sets.
    const int s = (i / kLanes) % sets;
    top[s] = max(top[s], load_i32(keys + i));
  }
  int32_t column[sets * kLanes];
  MOE_UNROLL
  for (int s = 0; s < sets; ++s) store_i32(column + s * kLanes, top[s]);
  int32_t bound = INT32_MAX;
  for (const int32_t key : column) {
    const I32x16 all = set1_i32(key);
    int above = 0;
    MOE_UNROLL
    for (int s = 0; s < sets; ++s) above += __builtin_popcount(to_bitmask(less(all, top[s])));
    const int32_t enough = above < k ? key : INT32_MAX;
    bound = enough < bound ? enough : bound;
  }
  return bound;
}

/// Ranks the n keys in `room` (kNoKey after them up to a whole vector): room.order[r] is the id of
/// the r-th best.
MOE_INLINE void rank_by_counting(const TopScratch& room, int n) {
  for (int j = 0; j < n; ++j) {
    const I32x16 key = set1_i32(room.keys[j]);
    int rank = 0;
    for (int i = 0; i < n; i += kLanes) {
      const I32x16 other = load_i32(room.keys + i);
      const int before = j - i;  // ids ascend: an equal key before this one wins
      const uint32_t lower = before >= kLanes ? 0xffffu : before > 0 ? (1u << before) - 1u : 0u;
      rank += __builtin_popcount(to_bitmask(less(key, other)) |
                                 (to_bitmask(equal(key, other)) & lower));
    }
    room.order[rank] = room.ids[j];
  }
}

/// Indices of the k best of `padded` keys (a multiple of 16, kNoKey at the end) into room.order;
/// returns how many there are: k, or fewer where fewer keys are above kNoKey.
static int select_top(const int32_t* keys, int padded, int k, const TopScratch& room) {
  int32_t bound = kNoKey + 1;
  if (padded > kLanes && k <= 8) {
    bound = lower_bound_of_top<1>(keys, padded, k);
  } else if (padded > 4 * kLanes && k <= 32) {
    bound = lower_bound_of_top<4>(keys, padded, k);
  }
  if (bound == kNoKey) bound = kNoKey + 1;
  const I32x16 least = set1_i32(bound);
  static constexpr int32_t kIota[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const I32x16 iota = load_i32(kIota);
  int n = 0;
  for (int i = 0; i < padded; i += kLanes) {
    const I32x16 key = load_i32(keys + i);
    const uint32_t lanes = ~to_bitmask(less(key, least)) & 0xffffu;
    store_compressed(room.keys + n, key, lanes);
    store_compressed(room.ids + n, add(iota, set1_i32(i)), lanes);
    n += __builtin_popcount(lanes);
  }
  store_i32(room.keys + n, set1_i32(kNoKey));
  rank_by_counting(room, n);
  return n < k ? n : k;
}

}  // namespace moe::MOE_ISA
