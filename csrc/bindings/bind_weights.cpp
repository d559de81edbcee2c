// PackedWeight and the products that need nothing else.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <memory>
#include <optional>
#include <span>

#include "bindings/array.h"
#include "moe/ops/grouped_gemm.h"
#include "moe/quant/ggml_grids.h"
#include "moe/quant/gptq.h"
#include "moe/weights/packed_weight.h"

namespace moe::bindings {

namespace {

void require_permutation(const int32_t* order, int64_t n) {
  std::vector<bool> seen(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    const bool fresh = order[i] >= 0 && order[i] < n && !seen[static_cast<size_t>(order[i])];
    MOE_CHECK(fresh, "[gptq] order[", i, "] is ", order[i], "; each of 0 to ", n - 1,
              " once is required");
    seen[static_cast<size_t>(order[i])] = true;
  }
}

std::unique_ptr<PackedWeight> make_packed(const std::vector<std::string>& formats, int64_t experts,
                                          int64_t rows, int64_t cols) {
  std::vector<Format> parsed;
  for (const std::string& name : formats) parsed.push_back(parse_format(name));
  return std::make_unique<PackedWeight>(std::move(parsed), experts, rows, cols);
}

/// The rows that an argument fills: all, or from `first` on as many as it has.
PackedWeight::Rows rows_of(const PackedWeight& packed, std::optional<int64_t> first,
                           int64_t count) {
  return first ? PackedWeight::Rows{*first, count} : packed.all_rows();
}

void fill(PackedWeight& packed, int64_t expert, const py::array& values,
          std::optional<int64_t> first) {
  const DType dtype = dtype_of(values, "pack", "weight");
  const auto rows = rows_of(packed, first, values.ndim() == 2 ? values.shape(0) : 0);
  if (values.ndim() != 2 || values.shape(0) != rows.count || values.shape(1) != packed.cols()) {
    throw ValueError(message("[pack] weight of expert ", expert, " has shape ", shape_text(values),
                             "; [", packed.rows(), ", ", packed.cols(), "] is required"));
  }
  if ((values.flags() & py::array::c_style) == 0) {
    throw TypeError("[pack] weight is not C-contiguous");
  }
  const void* data = values.data();
  const py::gil_scoped_release release;
  packed.fill(expert, rows, data, dtype);
}

void fill_blocks(PackedWeight& packed, int64_t expert, const py::array& blocks,
                 std::optional<int64_t> first) {
  const uint8_t* data = data_of<uint8_t>(blocks, 2, "pack_blocks", "blocks");
  packed.check_expert(expert, "pack_blocks");
  const FormatInfo& info = format_info(packed.format(expert));
  const int64_t bytes = info.blocks(packed.cols()) * info.file_bytes;
  const auto rows = rows_of(packed, first, blocks.shape(0));
  if (blocks.shape(0) != rows.count || blocks.shape(1) != bytes) {
    throw ValueError(message("[pack_blocks] blocks have shape ", shape_text(blocks), "; [",
                             packed.rows(), ", ", bytes, "] is required for ", info.name));
  }
  const py::gil_scoped_release release;
  packed.fill_blocks(expert, rows, reinterpret_cast<const std::byte*>(data));
}

py::array_t<uint8_t> copy_bytes(const PackedWeight& packed, int64_t expert) {
  const std::span<const std::byte> bytes = packed.bytes(expert);
  auto out = new_array<uint8_t>({static_cast<int64_t>(bytes.size())});
  std::memcpy(out.mutable_data(), bytes.data(), bytes.size());
  return out;
}

py::array_t<float> unpack(const PackedWeight& packed, int64_t expert) {
  auto out = new_array<float>({packed.rows(), packed.cols()});
  float* data = out.mutable_data();
  const py::gil_scoped_release release;
  packed.unpack(expert, data);
  return out;
}

std::unique_ptr<PackedWeight> gather(const std::vector<const PackedWeight*>& weights,
                                     const std::vector<int64_t>& experts) {
  MOE_CHECK(weights.size() == experts.size(), "[gather] ", weights.size(), " weights; ",
            experts.size(), " experts");
  std::vector<PackedWeight::Member> members;
  for (size_t i = 0; i < weights.size(); ++i) {
    MOE_CHECK(weights[i] != nullptr, "[gather] weight ", i, " is None");
    members.push_back({weights[i], experts[i]});
  }
  return std::make_unique<PackedWeight>(PackedWeight::gather(members));
}

void fill_gptq(PackedWeight& packed, int64_t expert, const py::array& values,
               const py::array& factor, const py::array& order, bool refit) {
  const float* data = data_of<float>(values, 2, "gptq", "weight");
  const float* upper = data_of<float>(factor, 2, "gptq", "factor");
  const int32_t* columns = data_of<int32_t>(order, 1, "gptq", "order");
  const int64_t n = packed.cols();
  if (values.shape(0) != packed.rows() || values.shape(1) != n || factor.shape(0) != n ||
      factor.shape(1) != n || order.shape(0) != n) {
    throw ValueError(message("[gptq] weight ", shape_text(values), ", factor ", shape_text(factor),
                             ", order ", shape_text(order), "; [", packed.rows(), ", ", n, "], [",
                             n, ", ", n, "], [", n, "] are required"));
  }
  require_permutation(columns, n);
  const py::gil_scoped_release release;
  packed.fill_gptq(expert, data, upper, columns, refit);
}

py::object gptq_factor(const py::array& hessian, const py::array& order, double damp) {
  const double* data = data_of<double>(hessian, 2, "gptq", "hessian");
  const int32_t* columns = data_of<int32_t>(order, 1, "gptq", "order");
  const int64_t n = hessian.shape(0);
  if (hessian.shape(1) != n || order.shape(0) != n || n == 0) {
    throw ValueError(message("[gptq] hessian ", shape_text(hessian), ", order ", shape_text(order),
                             "; [n, n] and [n] are required"));
  }
  require_permutation(columns, n);
  auto out = new_array<float>({n, n});
  float* to = out.mutable_data();
  bool definite = false;
  {
    const py::gil_scoped_release release;
    definite = inverse_factor(data, n, columns, damp, to);
  }
  if (!definite) return py::none();
  return out;
}

void fill_bytes(PackedWeight& packed, int64_t expert, const py::array& bytes,
                std::optional<int64_t> begin) {
  const uint8_t* data = data_of<uint8_t>(bytes, 1, "pack", "bytes");
  const auto all = static_cast<int64_t>(packed.bytes(expert).size());
  MOE_CHECK(begin || bytes.shape(0) == all, "[pack] ", bytes.shape(0), " bytes for expert ", expert,
            "; ", all, " are required for ", format_info(packed.format(expert)).name, " [",
            packed.rows(), ", ", packed.cols(), "]");
  const std::span<const std::byte> view(reinterpret_cast<const std::byte*>(data),
                                        static_cast<size_t>(bytes.shape(0)));
  const py::gil_scoped_release release;
  packed.fill_bytes(expert, begin.value_or(0), view);
}

template <class Points>
py::array_t<int8_t> values_of(const Points& grid) {
  auto out = new_array<int8_t>({Points::kPoints, Points::kWidth});
  int8_t* to = out.mutable_data();
  for (int p = 0; p < Points::kPoints; ++p) {
    for (int j = 0; j < Points::kWidth; ++j) *to++ = static_cast<int8_t>(grid.byte(p, j) - 128);
  }
  return out;
}

py::array_t<int8_t> ggml_grid(const std::string& name) {
  if (name == "iq1") return values_of(kIq1Grid);
  if (name == "iq2_xxs") return values_of(kIq2XxsGrid);
  if (name == "iq2_xs") return values_of(kIq2XsGrid);
  if (name == "iq2_s") return values_of(kIq2SGrid);
  if (name == "iq3_xxs") return values_of(kIq3XxsGrid);
  if (name == "iq3_s") return values_of(kIq3SGrid);
  throw ValueError(message("[ggml_grid] '", name, "' has no grid; iq1, iq2_xxs, iq2_xs, iq2_s, ",
                           "iq3_xxs or iq3_s is required"));
}

}  // namespace

void bind_weights(py::module_& m) {
  m.def("format_names", [] {
    std::vector<std::string> names;
    for (int i = 0; i < kFormatCount; ++i) {
      names.emplace_back(format_info(static_cast<Format>(i)).name);
    }
    return names;
  });
  m.def("gptq_format_names", [] {
    std::vector<std::string> names;
    for (int i = 0; i < kFormatCount; ++i) {
      const FormatInfo& info = format_info(static_cast<Format>(i));
      if (info.round != nullptr) names.emplace_back(info.name);
    }
    return names;
  });
  m.def("ggml_grid", &ggml_grid, py::arg("name"),
        "Int8 [points, 4 or 8]: what the codes of ggml's IQ types stand for; eight times iq1's.");
  m.def("gptq_factor", &gptq_factor, py::arg("hessian"), py::arg("order"), py::arg("damp"),
        "Float32 [n, n], or None where the damped matrix is not positive definite.");
  m.def(
      "packed_bytes",
      [](const std::string& format, int64_t rows, int64_t cols) {
        return (rows + kPanelRows - 1) / kPanelRows *
               format_info(parse_format(format)).panel_bytes(cols);
      },
      py::arg("format"), py::arg("rows"), py::arg("cols"), "Bytes of one packed matrix.");

  py::class_<PackedWeight>(m, "PackedWeight")
      .def(py::init(&make_packed), py::arg("formats"), py::arg("experts"), py::arg("rows"),
           py::arg("cols"))
      .def_static("repeating", &PackedWeight::repeating, py::arg("pattern"), py::arg("experts"),
                  py::arg("rows"), py::arg("resident"),
                  "Weights for measurements; see csrc/moe/weights/packed_weight.h.",
                  py::call_guard<py::gil_scoped_release>())
      .def("fill", &fill, py::arg("expert"), py::arg("values"), py::arg("first"))
      .def("fill_blocks", &fill_blocks, py::arg("expert"), py::arg("blocks"), py::arg("first"))
      .def("fill_bytes", &fill_bytes, py::arg("expert"), py::arg("bytes"), py::arg("begin"))
      .def("fill_gptq", &fill_gptq, py::arg("expert"), py::arg("values"), py::arg("factor"),
           py::arg("order"), py::arg("refit"))
      .def_static("gather", &gather, py::arg("weights"), py::arg("experts"))
      .def("copy_bytes", &copy_bytes, py::arg("expert"))
      .def("row_step", &PackedWeight::row_step, py::arg("expert"))
      .def("unpack", &unpack, py::arg("expert"))
      .def_property_readonly("experts", &PackedWeight::experts)
      .def_property_readonly("rows", &PackedWeight::rows)
      .def_property_readonly("cols", &PackedWeight::cols)
      .def_property_readonly("nbytes", &PackedWeight::nbytes)
      .def_property_readonly("formats", [](const PackedWeight& packed) {
        std::vector<std::string> names;
        for (const Format format : packed.formats()) names.emplace_back(format_info(format).name);
        return names;
      });

  m.def(
      "grouped_matmul",
      [](const py::array& x, const PackedWeight& weight, const py::array& offsets,
         const std::string& compute) {
        const auto rows = matrix_of<float>(x, "grouped_matmul", "x");
        const int64_t* starts = data_of<int64_t>(offsets, 1, "grouped_matmul", "offsets");
        MOE_CHECK(offsets.shape(0) == weight.experts() + 1, "[grouped_matmul] offsets has ",
                  offsets.shape(0), " entries; ", weight.experts() + 1, " are required");
        const Compute how = parse_compute(compute);
        auto out = new_array<float>({rows.rows, weight.rows()});
        MatrixView<float> to(out.mutable_data(), rows.rows, weight.rows());
        const py::gil_scoped_release release;
        grouped_matmul(rows, weight, starts, how, to);
        return out;
      },
      py::arg("x"), py::arg("weight"), py::arg("offsets"), py::arg("compute"));
  m.def(
      "matmul_each",
      [](const py::array& x, const std::vector<const PackedWeight*>& weights,
         const std::vector<std::optional<py::array>>& biases, const std::string& compute) {
        const auto rows = matrix_of<float>(x, "matmul", "x");
        MOE_CHECK(biases.size() == weights.size(), "[matmul] ", biases.size(), " biases; ",
                  weights.size(), " are required");
        const Compute how = parse_compute(compute);
        std::vector<MatrixProduct> matrices;
        std::vector<py::array_t<float>> outs;
        for (size_t i = 0; i < weights.size(); ++i) {
          MOE_CHECK(weights[i] != nullptr, "[matmul] weight ", i, " is None");
          const int64_t outputs = weights[i]->rows();
          const float* bias = nullptr;
          if (biases[i]) {
            bias = data_of<float>(*biases[i], 1, "matmul", "bias");
            MOE_CHECK(biases[i]->shape(0) == outputs, "[matmul] bias has ", biases[i]->shape(0),
                      " entries; ", outputs, " are required");
          }
          outs.push_back(new_array<float>({rows.rows, outputs}));
          matrices.push_back({weights[i], bias, {outs.back().mutable_data(), rows.rows, outputs}});
        }
        {
          const py::gil_scoped_release release;
          matmul_each(rows, matrices, how);
        }
        return outs;
      },
      py::arg("x"), py::arg("weights"), py::arg("biases"), py::arg("compute"));
}

}  // namespace moe::bindings
