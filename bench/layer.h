#pragma once
// The layers that are measured: their sizes, their weights, and routings to go through in turn.

#include <cstdint>
#include <string>
#include <vector>

#include "moe/ops/moe_block.h"

namespace moe::bench {

struct Shape {
  const char* name;
  int64_t experts;
  int top_k;
  int64_t hidden;
  int64_t inter;

  /// Of the three products; a multiply-add is two.
  double operations(int64_t tokens) const {
    return 6.0 * static_cast<double>(tokens * top_k * hidden * inter);
  }
  int64_t expert_bytes(Format format) const;
};

inline constexpr Shape kShapes[] = {{"mixtral-8x7b", 8, 2, 4096, 14336},
                                    {"olmoe-1b-7b", 64, 8, 2048, 1024},
                                    {"qwen3-30b-a3b", 128, 8, 2048, 768},
                                    {"deepseek-v3", 256, 8, 7168, 2048}};

/// One batch's experts.
struct Routing {
  std::vector<int32_t> experts;  // [tokens, K]
  std::vector<float> weights;
  int64_t tokens = 0;
  int64_t touched = 0;  // distinct experts

  AssignmentView view() const {
    return {experts.data(), weights.data(), tokens,
            static_cast<int>(experts.size() / static_cast<size_t>(tokens))};
  }
};

/// A layer's experts. The weights are a few random rows, repeated: their values change no kernel's
/// time. Where all experts are more than `memory_bytes`, they share the memory of resident() ones,
/// many times as large as the caches: the counts of experts, rows and bytes stay true.
class Layer {
 public:
  Layer(const Shape& shape, Format format, int64_t memory_bytes);

  const Shape& shape() const { return shape_; }
  Format format() const { return format_; }
  int64_t resident() const { return resident_; }
  ExpertBank bank() const { return {&gate_, &up_, &down_, nullptr, nullptr, nullptr, {}}; }

  /// `count` batches. As long as a batch fits into the resident experts, every one of them is used
  /// before one is used again, so that none lies in a cache; larger batches choose at random.
  std::vector<Routing> routings(int64_t tokens, int count) const;

 private:
  PackedWeight packed(int64_t rows, int64_t cols, uint64_t seed) const;

  Shape shape_;
  Format format_;
  int64_t resident_;
  PackedWeight gate_, up_, down_;
};

/// n values of variance 1, cheap to make: uniform in ±√3.
std::vector<float> random_values(int64_t n, uint64_t seed);

}  // namespace moe::bench
