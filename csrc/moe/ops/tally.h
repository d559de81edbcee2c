#pragma once
// How often the experts of a model's layers were chosen.

#include <cstddef>
#include <cstdint>
#include <vector>

namespace moe {

/// Counts [layers, experts] over many passes of a model, one after another; a pass counts when it
/// is finished. One thread at a time.
///
/// What a decode step counts are a few cache lines that its weights have driven out meanwhile, and
/// fetching them is most of the cost. So it goes to the end of a list, and into the table only when
/// somebody asks or the list is long.
class ExpertTally {
 public:
  /// Throws ValueError for negative sizes and for more than 2^27 counts.
  ExpertTally(int64_t layers, int64_t experts);

  /// Counts the slots of `ids` [tokens, k] (-1: empty) for a layer of the running pass. Throws
  /// ValueError for a layer or an expert that is not there.
  void count(int64_t layer, const int32_t* ids, int64_t tokens, int k);

  /// The running pass, of so many tokens, is complete.
  void finish(int64_t tokens);

  /// Forgets what the running pass has counted.
  void discard() { list_.resize(finished_); }

  /// Adds what the running pass of another tally, of the same shape, has counted so far.
  void add_running(const ExpertTally& other, int64_t tokens);

  /// Of finished passes.
  const std::vector<int64_t>& counts();
  int64_t tokens() const { return tokens_; }
  int64_t layers() const { return layers_; }
  int64_t experts() const { return experts_; }

 private:
  struct Entry {
    int32_t place;  // in the table
    uint32_t slots;
  };

  void fold();

  int64_t layers_, experts_, tokens_ = 0;
  std::vector<Entry> list_;
  size_t finished_ = 0;          // entries of finished passes
  std::vector<int64_t> counts_;  // [layers, experts], without the list
};

}  // namespace moe
