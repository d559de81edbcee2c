#include "moe/weights/packed_weight.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>
#include <set>

#include "moe/base/check.h"
#include "moe/base/half.h"
#include "moe/base/parallel.h"
#include "moe/quant/gptq.h"

namespace moe {

namespace {

void widen(const void* values, DType dtype, int64_t begin, int64_t count, float* out) {
  switch (dtype) {
    case DType::kF32:
      std::memcpy(out, static_cast<const float*>(values) + begin, static_cast<size_t>(count) * 4);
      return;
    case DType::kBf16:
      for (int64_t i = 0; i < count; ++i)
        out[i] = to_float(static_cast<const bf16*>(values)[begin + i]);
      return;
    case DType::kF16:
      for (int64_t i = 0; i < count; ++i)
        out[i] = to_float(static_cast<const f16*>(values)[begin + i]);
      return;
  }
}

// Fills the rest of the last group with its own values: zeros that the format cannot express would
// pull the group's scale away from the weights. Activations are 0 there.
void repeat_last_group(float* row, int64_t count, int group) {
  const int64_t begin = count / group * group;
  for (int64_t k = count; k % group != 0; ++k) row[k] = row[begin + (k - begin) % (count - begin)];
}

/// The sixteen rows of panel `p` as floats [16, depth], zero where the matrix ends (but see above).
void panel_rows(const PackedMatrix& matrix, int64_t depth, const void* values, DType dtype,
                int64_t p, float* out) {
  const FormatInfo& info = format_info(matrix.format);
  for (int r = 0; r < kPanelRows; ++r) {
    float* row = out + r * depth;
    const int64_t source = p * kPanelRows + r;
    const int64_t count = source < matrix.rows ? matrix.cols : 0;
    widen(values, dtype, source * matrix.cols, count, row);
    std::memset(row + count, 0, static_cast<size_t>(depth - count) * 4);
    if (!info.has_zero) repeat_last_group(row, count, info.group);
  }
}

/// The scales of blocks of several panels: [row blocks, blocks along the depth].
std::vector<float> shared_scales(const PackedMatrix& matrix, const FormatInfo& info,
                                 const void* values, DType dtype) {
  const int64_t blocks = info.blocks(matrix.cols);
  const int64_t row_blocks = (matrix.rows + info.scale_rows - 1) / info.scale_rows;
  std::vector<float> scales(static_cast<size_t>(row_blocks * blocks), 0.0f);
  const auto measure = [&](int64_t begin, int64_t end) {
    auto* row = scratch_of<float>(Scratch::kTile, static_cast<size_t>(matrix.cols));
    for (int64_t r = begin * info.scale_rows; r < std::min(end * info.scale_rows, matrix.rows);
         ++r) {
      widen(values, dtype, r * matrix.cols, matrix.cols, row);
      float* to = scales.data() + r / info.scale_rows * blocks;
      for (int64_t k = 0; k < matrix.cols; ++k) {
        to[k / info.depth] = std::max(to[k / info.depth], std::fabs(row[k]));
      }
    }
  };
  parallel_for(row_blocks, 1, measure);
  for (float& scale : scales) scale /= info.max_value;
  return scales;
}

/// Finds numbers that a format has no place for. Codes are integers: a group with NaN or Inf,
/// fitted to them, would become other numbers. fp8 has NaN, but an infinite scale takes a whole
/// block. And scales of 16 bits become infinite where a group's numbers are large.
class Unplaced {
 public:
  explicit Unplaced(const FormatInfo& info)
      : info_(info), all_(info.group == 0 && info.trailer_bytes == 0) {}

  /// Compares a panel's rows with what was packed of them. Threads may share it.
  void look(const float* rows, int64_t depth, int64_t panel, const std::byte* packed) {
    uint32_t large = 0;  // an integer: the compiler makes vectors of it
    for (int64_t i = 0; i < kPanelRows * depth; ++i) {
      large |= static_cast<uint32_t>(magnitude(rows[i]) > kSafe);
    }
    if (large == 0) return;
    const float* end = rows + kPanelRows * depth;
    const float* at = all_ ? end : std::find_if(rows, end, [&](float x) { return lost(x); });
    if (at == end) at = largest_lost(rows, depth, packed);
    if (at == nullptr) return;
    const int64_t place = at - rows;
    const std::lock_guard lock(mutex_);
    if (panel * kPanelRows >= row_) return;
    row_ = panel * kPanelRows + place / depth;
    column_ = place % depth;
    value_ = *at;
  }
  /// Throws ValueError naming the first, if there is one.
  void require_none(const char* op, int64_t expert, int64_t first_row) const {
    MOE_CHECK(row_ == kNone, "[", op, "] row ", first_row + row_, ", column ", column_,
              " of expert ", expert, " is ", value_, "; ", info_.name, " has no such number");
  }

 private:
  static uint32_t magnitude(float x) { return std::bit_cast<uint32_t>(x) & 0x7fffffffu; }

  bool lost(float x) const {
    return info_.scale_rows == 0 ? magnitude(x) >= kInf : magnitude(x) == kInf;
  }
  /// Of the finite numbers that are none any more, or beyond what the format reaches: a group's
  /// others are lost with it.
  const float* largest_lost(const float* rows, int64_t depth, const std::byte* packed) const {
    const float* found = nullptr;
    for (int64_t i = 0; i < kPanelRows * depth; ++i) {
      const float x = rows[i];
      if (magnitude(x) >= kInf || (found != nullptr && std::fabs(x) <= std::fabs(*found))) continue;
      const float kept = info_.at(packed, depth, static_cast<int>(i / depth), i % depth);
      if (std::fabs(x) > info_.largest || magnitude(kept) >= kInf) found = rows + i;
    }
    return found;
  }

  static constexpr uint32_t kInf = 0x7f800000u;
  static constexpr uint32_t kSafe = 0x45000000u;  // 2048, which every format reaches

  static constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  const FormatInfo& info_;
  bool all_;  // the format has places for all
  std::mutex mutex_;
  int64_t row_ = kNone, column_ = 0;
  float value_ = 0.0f;
};

}  // namespace

PackedWeight::PackedWeight(std::vector<Format> formats, int64_t experts, int64_t rows, int64_t cols)
    : formats_(std::move(formats)), experts_(experts), rows_(rows), cols_(cols) {
  constexpr int64_t kLargest = int64_t{1} << 40;
  MOE_CHECK(experts > 0 && rows > 0 && cols > 0 && experts < kLargest && rows < kLargest &&
                cols < kLargest,
            "[pack] shape [", experts, ", ", rows, ", ", cols, "]; every size must be positive");
  MOE_CHECK(formats_.size() == 1 || static_cast<int64_t>(formats_.size()) == experts, "[pack] ",
            formats_.size(), " formats; one, or one for each of ", experts, " experts");
  std::vector<int64_t> offsets;
  offsets.reserve(static_cast<size_t>(experts));
  const int64_t panels = (rows + kPanelRows - 1) / kPanelRows;
  for (int64_t e = 0; e < experts; ++e) {
    int64_t bytes = 0, end = 0;
    const bool overflow =
        __builtin_mul_overflow(panels, format_info(format(e)).panel_bytes(cols), &bytes) ||
        __builtin_add_overflow(nbytes_, bytes, &end) || end > (int64_t{1} << 47);
    MOE_CHECK(!overflow, "[pack] shape [", experts, ", ", rows, ", ", cols, "] has too many bytes");
    offsets.push_back(nbytes_);
    nbytes_ = end;
  }
  buffers_.push_back(std::make_shared<Buffer>(static_cast<size_t>(nbytes_)));
  for (const int64_t offset : offsets) places_.push_back(buffers_[0]->data() + offset);
}

int64_t PackedWeight::bytes_of_expert(int64_t expert) const {
  return (rows_ + kPanelRows - 1) / kPanelRows * format_info(format(expert)).panel_bytes(cols_);
}

void PackedWeight::check_expert(int64_t expert, const char* op) const {
  MOE_CHECK(expert >= 0 && expert < experts_, "[", op, "] expert ", expert, "; there are ",
            experts_);
}

std::byte* PackedWeight::place_to_fill(int64_t expert, const char* op) {
  check_expert(expert, op);
  MOE_CHECK(!shared_, "[", op,
            "] the weight shares the memory of others; one of its own is "
            "required");
  return places_[static_cast<size_t>(expert)];
}

PackedWeight PackedWeight::repeating(const PackedWeight& pattern, int64_t experts, int64_t rows,
                                     int64_t resident) {
  const int64_t sample = pattern.matrix(0).panels();
  MOE_CHECK(pattern.experts() == 1 && pattern.rows() % kPanelRows == 0, "[repeating] pattern is [",
            pattern.experts(), ", ", pattern.rows(), ", ", pattern.cols(),
            "]; one expert of whole panels is required");
  MOE_CHECK(resident >= 1 && resident <= experts, "[repeating] ", resident, " resident of ",
            experts, " experts");
  PackedWeight packed(pattern.formats(), resident, rows, pattern.cols());
  const PackedMatrix source = pattern.matrix(0);
  const int64_t panels = packed.matrix(0).panels();
  const auto copy_panels = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      std::byte* panel = packed.places_[0] + i * source.panel_bytes;
      const int64_t p = i % panels;
      // Rows beyond the matrix are 0 in every format.
      if ((p + 1) * kPanelRows > rows) {
        std::memset(panel, 0, static_cast<size_t>(source.panel_bytes));
      } else {
        std::memcpy(panel, source.panel(i % sample), static_cast<size_t>(source.panel_bytes));
      }
    }
  };
  parallel_for(resident * panels, 16, copy_panels);
  packed.experts_ = experts;
  for (int64_t e = resident; e < experts; ++e)
    packed.places_.push_back(packed.places_[e % resident]);
  packed.shared_ = true;
  return packed;
}

PackedWeight PackedWeight::gather(const std::vector<Member>& members) {
  MOE_CHECK(!members.empty(), "[gather] no experts; one at least is required");
  const PackedWeight& first = *members[0].weight;
  PackedWeight packed({}, first.rows_, first.cols_);
  std::set<const std::byte*> seen;
  std::set<const Buffer*> held;
  for (const Member& member : members) {
    const PackedWeight& from = *member.weight;
    MOE_CHECK(from.rows_ == first.rows_ && from.cols_ == first.cols_, "[gather] a weight is [",
              from.rows_, ", ", from.cols_, "]; [", first.rows_, ", ", first.cols_,
              "] is required");
    MOE_CHECK(member.expert >= 0 && member.expert < from.experts_, "[gather] expert ",
              member.expert, "; there are ", from.experts_);
    std::byte* place = from.places_[static_cast<size_t>(member.expert)];
    packed.formats_.push_back(from.format(member.expert));
    packed.places_.push_back(place);
    if (seen.insert(place).second) packed.nbytes_ += from.bytes_of_expert(member.expert);
    for (const auto& buffer : from.buffers_) {
      if (held.insert(buffer.get()).second) packed.buffers_.push_back(buffer);
    }
  }
  packed.experts_ = static_cast<int64_t>(members.size());
  const auto same = [&](Format format) { return format == packed.formats_[0]; };
  if (std::all_of(packed.formats_.begin(), packed.formats_.end(), same)) packed.formats_.resize(1);
  packed.shared_ = true;
  return packed;
}

int64_t PackedWeight::row_step(int64_t expert) const {
  check_expert(expert, "pack");
  return std::max<int64_t>(kPanelRows, format_info(format(expert)).scale_rows);
}

std::pair<std::byte*, PackedMatrix> PackedWeight::run_to_fill(int64_t expert, Rows rows,
                                                              const char* op) {
  std::byte* base = place_to_fill(expert, op);
  const int64_t step = row_step(expert);
  MOE_CHECK(rows.first >= 0 && rows.count > 0 && rows.count <= rows_ - rows.first &&
                rows.first % step == 0 &&
                (rows.count % step == 0 || rows.first + rows.count == rows_),
            "[", op, "] rows ", rows.first, " and ", rows.count, " in all of ", rows_,
            "; runs of whole multiples of ", step, ", or up to the end, are required");
  PackedMatrix run = matrix(expert);
  base += rows.first / kPanelRows * run.panel_bytes;
  run.data = base;
  run.rows = rows.count;
  return {base, run};
}

void PackedWeight::fill(int64_t expert, Rows rows, const void* values, DType dtype) {
  const auto [base, packed] = run_to_fill(expert, rows, "pack");
  const FormatInfo& info = format_info(packed.format);
  const int64_t depth = info.blocks(cols_) * info.depth;
  std::vector<float> scales;
  if (info.scale_rows != 0) scales = shared_scales(packed, info, values, dtype);
  Unplaced unplaced(info);
  const auto pack_panels = [&](int64_t begin, int64_t end) {
    auto* block = scratch_of<float>(Scratch::kTile, static_cast<size_t>(kPanelRows * depth));
    for (int64_t p = begin; p < end; ++p) {
      panel_rows(packed, depth, values, dtype, p, block);
      std::byte* panel = base + p * packed.panel_bytes;
      // The panel's last cache line may be longer than its blocks.
      std::memset(panel + packed.panel_bytes - 64, 0, 64);
      if (info.scale_rows != 0) {
        const int64_t first = p * kPanelRows / info.scale_rows * info.blocks(cols_);
        info.encode_scaled(block, depth, scales.data() + first, panel);
      } else {
        info.encode(block, depth, panel);
      }
      unplaced.look(block, depth, p, panel);
    }
  };
  parallel_for(packed.panels(), 4, pack_panels);
  unplaced.require_none("pack", expert, rows.first);
}

void PackedWeight::fill_gptq(int64_t expert, const float* values, const float* factor,
                             const int32_t* order, bool refit) {
  std::byte* base = place_to_fill(expert, "gptq");
  const PackedMatrix packed = matrix(expert);
  const FormatInfo& info = format_info(packed.format);
  MOE_CHECK(info.round != nullptr, "[gptq] ", info.name,
            " values cannot be rounded one by one; another format is required");
  if (refit) {
    bool natural = info.trailer_bytes == 0;
    for (int64_t k = 0; k < cols_ && natural; ++k) natural = order[k] == k;
    MOE_CHECK(natural, "[gptq] refit with ", info.name,
              "; scales within blocks and the natural order are required");
  }
  const int64_t depth = info.blocks(cols_) * info.depth;
  Unplaced unplaced(info);
  const auto pack_panels = [&](int64_t begin, int64_t end) {
    const auto room = static_cast<size_t>(kPanelRows * depth + gptq_work(depth));
    auto* block = scratch_of<float>(Scratch::kTile, room);
    for (int64_t p = begin; p < end; ++p) {
      panel_rows(packed, depth, values, DType::kF32, p, block);
      std::byte* panel = base + p * packed.panel_bytes;
      std::memset(panel + packed.panel_bytes - 64, 0, 64);
      gptq_panel(info, block, cols_, depth, factor, order, refit, block + kPanelRows * depth,
                 panel);
      unplaced.look(block, depth, p, panel);
    }
  };
  parallel_for(packed.panels(), 1, pack_panels);
  unplaced.require_none("gptq", expert, 0);
}

void PackedWeight::fill_bytes(int64_t expert, int64_t begin, std::span<const std::byte> bytes) {
  std::byte* base = place_to_fill(expert, "pack");
  const int64_t all = bytes_of_expert(expert), count = static_cast<int64_t>(bytes.size());
  MOE_CHECK(begin >= 0 && begin <= all && count <= all - begin, "[pack] ", count,
            " bytes from byte ", begin, " of expert ", expert, "; ", all, " are required for ",
            format_info(format(expert)).name, " [", rows_, ", ", cols_, "]");
  std::memcpy(base + begin, bytes.data(), bytes.size());
}

std::span<const std::byte> PackedWeight::bytes(int64_t expert) const {
  check_expert(expert, "pack");
  return {places_[static_cast<size_t>(expert)], static_cast<size_t>(bytes_of_expert(expert))};
}

void PackedWeight::fill_blocks(int64_t expert, Rows rows, const std::byte* blocks_of_rows) {
  const auto [base, packed] = run_to_fill(expert, rows, "pack_blocks");
  const FormatInfo& info = format_info(packed.format);
  MOE_CHECK(info.repack != nullptr, "[pack_blocks] ", info.name, " is not a format of GGUF files");
  MOE_CHECK(info.cut_blocks || cols_ % info.depth == 0, "[pack_blocks] ", cols_,
            " columns; blocks of ", info.name, " hold ", info.depth);
  const int64_t blocks = info.blocks(cols_);
  const int64_t row_bytes = blocks * info.file_bytes;
  const std::vector<std::byte> zeros(static_cast<size_t>(row_bytes));
  const auto pack_panels = [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const std::byte* sources[kPanelRows];
      for (int r = 0; r < kPanelRows; ++r) {
        const int64_t row = p * kPanelRows + r;
        sources[r] = row < packed.rows ? blocks_of_rows + row * row_bytes : zeros.data();
      }
      std::byte* panel = base + p * packed.panel_bytes;
      std::memset(panel + packed.panel_bytes - 64, 0, 64);
      info.repack(sources, blocks, panel);
    }
  };
  parallel_for(packed.panels(), 4, pack_panels);
}

void PackedWeight::unpack(int64_t expert, float* out) const {
  check_expert(expert, "unpack");
  const PackedMatrix packed = matrix(expert);
  const FormatInfo& info = format_info(packed.format);
  const int64_t depth = info.blocks(cols_) * info.depth;
  const auto read_rows = [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const std::byte* panel = packed.panel(row / kPanelRows);
      for (int64_t k = 0; k < cols_; ++k) {
        out[row * cols_ + k] = info.at(panel, depth, static_cast<int>(row % kPanelRows), k);
      }
    }
  };
  parallel_for(rows_, 64, read_rows);
}

}  // namespace moe
