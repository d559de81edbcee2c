#include "moe/weights/packed_weight.h"

#include <cstring>

#include "moe/base/check.h"
#include "moe/base/half.h"
#include "moe/base/parallel.h"

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

}  // namespace

PackedWeight::PackedWeight(std::vector<Format> formats, int64_t experts, int64_t rows, int64_t cols)
    : formats_(std::move(formats)), experts_(experts), rows_(rows), cols_(cols) {
  constexpr int64_t kLargest = int64_t{1} << 40;
  MOE_CHECK(experts > 0 && rows > 0 && cols > 0 && experts < kLargest && rows < kLargest &&
                cols < kLargest,
            "[pack] shape [", experts, ", ", rows, ", ", cols, "]; every size must be positive");
  MOE_CHECK(formats_.size() == 1 || static_cast<int64_t>(formats_.size()) == experts, "[pack] ",
            formats_.size(), " formats; one, or one for each of ", experts, " experts");
  offsets_.reserve(static_cast<size_t>(experts) + 1);
  offsets_.push_back(0);
  const int64_t panels = (rows + kPanelRows - 1) / kPanelRows;
  for (int64_t e = 0; e < experts; ++e) {
    int64_t bytes = 0, end = 0;
    const bool overflow =
        __builtin_mul_overflow(panels, format_info(format(e)).panel_bytes(cols), &bytes) ||
        __builtin_add_overflow(offsets_.back(), bytes, &end) || end > (int64_t{1} << 47);
    MOE_CHECK(!overflow, "[pack] shape [", experts, ", ", rows, ", ", cols, "] has too many bytes");
    offsets_.push_back(end);
  }
  buffer_ = Buffer(static_cast<size_t>(offsets_.back()));
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
      std::byte* panel = packed.buffer_.data() + i * source.panel_bytes;
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
  const int64_t total = packed.offsets_.back();
  packed.experts_ = experts;
  packed.offsets_.clear();
  for (int64_t e = 0; e < experts; ++e) {
    packed.offsets_.push_back(e % resident * panels * source.panel_bytes);
  }
  packed.offsets_.push_back(total);
  return packed;
}

void PackedWeight::fill(int64_t expert, const void* values, DType dtype) {
  MOE_CHECK(expert >= 0 && expert < experts_, "[pack] expert ", expert, "; there are ", experts_);
  const PackedMatrix packed = matrix(expert);
  const FormatInfo& info = format_info(packed.format);
  const int64_t depth = info.blocks(cols_) * info.depth;
  std::byte* base = buffer_.data() + offsets_[expert];
  const auto pack_panels = [&](int64_t begin, int64_t end) {
    auto* block = scratch_of<float>(Scratch::kTile, static_cast<size_t>(kPanelRows * depth));
    for (int64_t p = begin; p < end; ++p) {
      for (int r = 0; r < kPanelRows; ++r) {
        float* row = block + r * depth;
        const int64_t source = p * kPanelRows + r;
        const int64_t count = source < rows_ ? cols_ : 0;
        widen(values, dtype, source * cols_, count, row);
        std::memset(row + count, 0, static_cast<size_t>(depth - count) * 4);
      }
      std::byte* panel = base + p * packed.panel_bytes;
      // The panel's last cache line may be longer than its blocks.
      std::memset(panel + packed.panel_bytes - 64, 0, 64);
      info.encode(block, depth, panel);
    }
  };
  parallel_for(packed.panels(), 4, pack_panels);
}

void PackedWeight::fill_blocks(int64_t expert, const std::byte* rows) {
  MOE_CHECK(expert >= 0 && expert < experts_, "[pack_blocks] expert ", expert, "; there are ",
            experts_);
  const PackedMatrix packed = matrix(expert);
  const FormatInfo& info = format_info(packed.format);
  MOE_CHECK(info.repack != nullptr, "[pack_blocks] ", info.name, " is not a format of GGUF files");
  MOE_CHECK(cols_ % info.depth == 0, "[pack_blocks] ", cols_, " columns; blocks of ", info.name,
            " hold ", info.depth);
  const int64_t blocks = info.blocks(cols_);
  const int64_t row_bytes = blocks * info.file_bytes;
  const std::vector<std::byte> zeros(static_cast<size_t>(row_bytes));
  std::byte* base = buffer_.data() + offsets_[expert];
  const auto pack_panels = [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const std::byte* panel_rows[kPanelRows];
      for (int r = 0; r < kPanelRows; ++r) {
        const int64_t row = p * kPanelRows + r;
        panel_rows[r] = row < rows_ ? rows + row * row_bytes : zeros.data();
      }
      std::byte* panel = base + p * packed.panel_bytes;
      std::memset(panel + packed.panel_bytes - 64, 0, 64);
      info.repack(panel_rows, blocks, panel);
    }
  };
  parallel_for(packed.panels(), 4, pack_panels);
}

void PackedWeight::unpack(int64_t expert, float* out) const {
  MOE_CHECK(expert >= 0 && expert < experts_, "[unpack] expert ", expert, "; there are ", experts_);
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
