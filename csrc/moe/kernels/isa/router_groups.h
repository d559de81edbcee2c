#pragma once
// Group-limited routing (DeepSeek-V2, section 2.2.2): only the best groups keep their experts.
//
// Shapes        keys [groups, size] → the vectors that still take part
// Regularities  8 groups of 32 in every released model: their bests are folded side by side, eight
//               groups in 8 merges of two vectors where one after the other needs 32.

#include "moe/kernels/isa/router_score.h"

namespace moe::MOE_ISA {

/// The best and second best key of each lane.
struct TopKeys {
  I32x16 best, second;
};

MOE_INLINE TopKeys merge(TopKeys a, TopKeys b) {
  return {max(a.best, b.best), max(min(a.best, b.best), max(a.second, b.second))};
}

/// Two runs of lanes into one of half the length each.
template <int distance>
MOE_INLINE TopKeys fold(TopKeys a, TopKeys b) {
  const LanePair best = pair_lanes<distance>(from_bits(a.best), from_bits(b.best));
  const LanePair second = pair_lanes<distance>(from_bits(a.second), from_bits(b.second));
  return merge({bits(best.clear), bits(second.clear)}, {bits(best.set), bits(second.set)});
}

template <int distance>
MOE_INLINE TopKeys fold(TopKeys a) {
  return merge(a, {bits(swap_lanes<distance>(from_bits(a.best))),
                   bits(swap_lanes<distance>(from_bits(a.second)))});
}

MOE_INLINE TopKeys insert(TopKeys top, I32x16 key) {
  return {max(top.best, key), max(top.second, min(top.best, key))};
}

/// Lane by lane over one group's keys.
MOE_INLINE TopKeys top_keys(const int32_t* keys, int size) {
  if (size == 2 * kLanes) {
    const I32x16 a = load_i32(keys), b = load_i32(keys + kLanes);
    return {max(a, b), min(a, b)};
  }
  const I32x16 none = set1_i32(kNoKey);
  TopKeys top{none, none};
  int i = 0;
  for (; i + kLanes <= size; i += kLanes) top = insert(top, load_i32(keys + i));
  if (i < size) {
    int32_t rest[kLanes];
    store_i32(rest, none);
    std::memcpy(rest, keys + i, static_cast<size_t>(size - i) * 4);
    top = insert(top, load_i32(rest));
  }
  return top;
}

/// Keys that rank groups: of the best, or of the sum of the two best. A group of which only one
/// expert is allowed counts with that one.
MOE_INLINE I32x16 group_keys(TopKeys top, GroupScore group_score) {
  if (group_score == GroupScore::kMax) return top.best;
  const F32x16 sum = add(float_of_key(top.best), float_of_key(top.second));
  const I32x16 none = set1_i32(kNoKey);
  return select(equal(top.second, none), top.best, sort_key_of_any(sum));
}

/// Up to eight groups; bit g says that group g is kept. 0 where a tie has to be settled.
MOE_INLINE uint32_t best_of_few_groups(const RouterRule& rule, const int32_t* keys, int size) {
  const I32x16 none = set1_i32(kNoKey);
  const auto group = [&](int g) MOE_INLINE_LAMBDA {
    return g < rule.groups ? top_keys(keys + g * size, size) : TopKeys{none, none};
  };
  TopKeys half[4];
  MOE_UNROLL
  for (int i = 0; i < 4; ++i) half[i] = fold<8>(group(2 * i), group(2 * i + 1));
  const TopKeys low = fold<4>(half[0], half[1]), high = fold<4>(half[2], half[3]);
  // Block b of four lanes now holds group b in low, group b + 4 in high. The last two folds leave
  // group b in the first two lanes of block b, and group b + 4 in the other two.
  const I32x16 all = group_keys(fold<1>(fold<2>(low, high)), rule.group_score);
  const int32_t least = kth_largest(all, 2 * rule.top_groups);
  const uint32_t lanes = ~to_bitmask(less(all, set1_i32(least))) & 0xffffu;
  if (__builtin_popcount(lanes) != 2 * rule.top_groups) return 0;
  // Bits 0, 4, 8, 12 become bits 12 to 15 of the product.
  const auto gather = [](uint32_t x)
                          MOE_INLINE_LAMBDA { return ((x & 0x1111u) * 0x1248u >> 12) & 15u; };
  return gather(lanes) | (gather(lanes >> 2) << 4);
}

/// Any number of groups: marks the kept ones' entries in `kept`.
MOE_INLINE void best_of_many_groups(const RouterRule& rule, RouteRow& row, uint8_t* kept) {
  auto* groups = reinterpret_cast<int32_t*>(row.spare);
  const auto padded = static_cast<int>(padded_experts(rule.groups));
  store_i32(groups + padded - kLanes, set1_i32(kNoKey));
  for (int g = 0; g < rule.groups; ++g) {
    kept[g] = 0;
    const int32_t* keys = row.keys + g * row.group_size;
    const TopKeys top = fold<1>(fold<2>(fold<4>(fold<8>(top_keys(keys, row.group_size)))));
    int32_t lanes[kLanes];
    store_i32(lanes, group_keys(top, rule.group_score));
    // A group without experts is still a group: it may be kept, with nothing to offer.
    groups[g] = lanes[0] == kNoKey ? kNoKey + 1 : lanes[0];
  }
  const int count = select_top(groups, {row.first, padded / kLanes}, rule.top_groups, row.room);
  for (int i = 0; i < count; ++i) kept[row.room.order[i]] = 1;
}

/// Takes the experts of all but the best groups out of the race.
MOE_INLINE void limit_groups(const RouteCall& call, RouteRow& row) {
  const RouterRule& rule = *call.rule;
  const int size = row.group_size;
  const bool whole_vectors = size % kLanes == 0 && !rule.group_fill_zero;
  uint32_t bits = rule.groups <= 8 ? best_of_few_groups(rule, row.keys, size) : 0;
  if (bits != 0 && whole_vectors) {
    int count = 0;
    for (; bits != 0; bits &= bits - 1) {
      const int32_t first = __builtin_ctz(bits) * size;
      for (int e = 0; e < size; e += kLanes) row.kept[count++] = first + e;
    }
    row.vectors = {row.kept, count};
    return;
  }
  auto* kept = reinterpret_cast<uint8_t*>(row.kept);
  if (bits != 0) {
    for (int g = 0; g < rule.groups; ++g) kept[g] = (bits >> g) & 1u;
  } else {
    best_of_many_groups(rule, row, kept);
  }
  for (int g = 0; g < rule.groups; ++g) {
    if (kept[g] != 0) continue;
    int32_t* keys = row.keys + g * size;
    for (int e = 0; e < size; ++e) {
      keys[e] = !rule.group_fill_zero || keys[e] == kNoKey ? kNoKey : 0;
    }
  }
}

}  // namespace moe::MOE_ISA
