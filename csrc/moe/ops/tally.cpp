#include "moe/ops/tally.h"

#include "moe/base/check.h"

namespace moe {

namespace {

constexpr int64_t kMostCounts = int64_t{1} << 27;
constexpr size_t kLongList = 512;

}  // namespace

ExpertTally::ExpertTally(int64_t layers, int64_t experts) : layers_(layers), experts_(experts) {
  MOE_CHECK(layers >= 0 && experts >= 0 && (experts == 0 || layers <= kMostCounts / experts),
            "[tally] ", layers, " layers of ", experts, " experts; sizes from 0 on and at most ",
            kMostCounts, " counts are required");
  counts_.resize(static_cast<size_t>(layers * experts));
  list_.reserve(2 * kLongList);
}

void ExpertTally::count(int64_t layer, const int32_t* ids, int64_t tokens, int k) {
  MOE_CHECK(layer >= 0 && layer < layers_, "[tally] the layer is ", layer, "; there are ", layers_);
  const int64_t slots = tokens * k;
  MOE_CHECK(slots <= UINT32_MAX, "[tally] there are ", slots,
            " slots; less than 2^32 are required");
  const auto first = static_cast<int32_t>(layer * experts_);
  const size_t before = list_.size();
  const bool many = slots > experts_;  // an entry for each expert, not for each slot
  for (int64_t e = 0; many && e < experts_; ++e) {
    list_.push_back({first + static_cast<int32_t>(e), 0});
  }
  for (int64_t i = 0; i < slots; ++i) {
    const int32_t id = ids[i];
    if (id == -1) continue;
    if (id < 0 || id >= experts_) list_.resize(before);
    MOE_CHECK(id >= 0 && id < experts_, "[tally] token ", i / k, ", slot ", i % k, " has expert ",
              id, "; -1 (empty) or 0 to ", experts_ - 1, " is required");
    if (many) {
      ++list_[before + static_cast<size_t>(id)].slots;
    } else {
      list_.push_back({first + id, 1});
    }
  }
}

void ExpertTally::finish(int64_t tokens) {
  tokens_ += tokens;
  finished_ = list_.size();
  if (finished_ > kLongList) fold();
}

void ExpertTally::add_running(const ExpertTally& other, int64_t tokens) {
  MOE_CHECK(other.layers_ == layers_ && other.experts_ == experts_, "[tally] a tally of ",
            other.layers_, " layers of ", other.experts_, " experts; ", layers_, " of ", experts_,
            " are required");
  for (size_t i = other.finished_; i < other.list_.size(); ++i) {
    counts_[static_cast<size_t>(other.list_[i].place)] += other.list_[i].slots;
  }
  tokens_ += tokens;
}

const std::vector<int64_t>& ExpertTally::counts() {
  fold();
  return counts_;
}

void ExpertTally::fold() {
  for (size_t i = 0; i < finished_; ++i) {
    counts_[static_cast<size_t>(list_[i].place)] += list_[i].slots;
  }
  list_.erase(list_.begin(), list_.begin() + static_cast<std::ptrdiff_t>(finished_));
  finished_ = 0;
}

}  // namespace moe
