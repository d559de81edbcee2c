// What happens to whole rows: embedding, norms, rotary embedding.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <utility>

#include "bindings/array.h"
#include "moe/ops/embed.h"
#include "moe/ops/norm.h"
#include "moe/ops/rope.h"

namespace moe::bindings {

namespace {

using Norm = void (*)(MatrixView<const float>, const NormParts&, float, float*);

py::object run_norm(Norm norm, const char* op, const py::array& x, const OptionalArray& weight,
                    const OptionalArray& bias, double eps, double offset,
                    const OptionalArray& residual) {
  const auto view = matrix_of<float>(x, op, "x");
  NormParts parts;
  parts.weight = vector_of(weight, view.cols, op, "weight");
  parts.bias = vector_of(bias, view.cols, op, "bias");
  parts.offset = static_cast<float>(offset);
  auto out = new_array<float>({view.rows, view.cols});
  std::optional<py::array_t<float>> sum;
  if (residual) {
    const auto other = matrix_of<float>(*residual, op, "residual");
    MOE_CHECK(other.rows == view.rows && other.cols == view.cols, "[", op, "] residual has shape ",
              shape_text(*residual), "; x has ", shape_text(x));
    parts.residual = other.data;
    sum = new_array<float>({view.rows, view.cols});
    parts.sum = sum->mutable_data();
  }
  float* data = out.mutable_data();
  {
    const py::gil_scoped_release release;
    norm(view, parts, static_cast<float>(eps), data);
  }
  if (!sum) return out;
  return py::make_tuple(std::move(out), *std::move(sum));
}

}  // namespace

void bind_rowwise(py::module_& m) {
  m.def(
      "embed",
      [](const py::array& table, const py::array& ids) {
        const DType dtype = dtype_of(table, "embed", "table");
        if (table.ndim() != 2 || (table.flags() & py::array::c_style) == 0) {
          throw ValueError(message("[embed] table has shape ", shape_text(table),
                                   "; two dimensions, C-contiguous, are required"));
        }
        const int64_t* id = data_of<int64_t>(ids, 1, "embed", "ids");
        const int64_t vocab = table.shape(0), hidden = table.shape(1), count = ids.shape(0);
        const void* rows = table.data();
        auto out = new_array<float>({count, hidden});
        float* data = out.mutable_data();
        {
          const py::gil_scoped_release release;
          embed(rows, dtype, vocab, hidden, id, count, data);
        }
        return out;
      },
      py::arg("table"), py::arg("ids"));
  m.def(
      "rms_norm",
      [](const py::array& x, const OptionalArray& weight, double eps, double offset,
         const OptionalArray& residual) {
        return run_norm(&rms_norm, "rms_norm", x, weight, std::nullopt, eps, offset, residual);
      },
      py::arg("x"), py::arg("weight"), py::arg("eps"), py::arg("offset"), py::arg("residual"),
      "The normed rows; with a residual a pair: these and x + residual.");
  m.def(
      "layer_norm",
      [](const py::array& x, const OptionalArray& weight, const OptionalArray& bias, double eps,
         double offset, const OptionalArray& residual) {
        return run_norm(&layer_norm, "layer_norm", x, weight, bias, eps, offset, residual);
      },
      py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("eps"), py::arg("offset"),
      py::arg("residual"), "As rms_norm.");
  m.def(
      "rope_angles",
      [](const py::array& positions, const py::array& frequencies, double factor) {
        const int64_t* position = data_of<int64_t>(positions, 1, "rope", "positions");
        const float* frequency = data_of<float>(frequencies, 1, "rope", "frequencies");
        const int64_t tokens = positions.shape(0), half = frequencies.shape(0);
        auto cos = new_array<float>({tokens, half}), sin = new_array<float>({tokens, half});
        float *c = cos.mutable_data(), *s = sin.mutable_data();
        {
          const py::gil_scoped_release release;
          rope_angles(position, tokens, frequency, half, static_cast<float>(factor), c, s);
        }
        return std::pair(std::move(cos), std::move(sin));
      },
      py::arg("positions"), py::arg("frequencies"), py::arg("factor"));
  m.def(
      "rope",
      [](const py::array& x, const py::array& cos, const py::array& sin, int64_t first,
         bool interleaved) {
        const float* from = data_of<float>(x, 3, "rope", "x");
        const auto c = matrix_of<float>(cos, "rope", "cos"),
                   s = matrix_of<float>(sin, "rope", "sin");
        const int64_t tokens = x.shape(0), heads = x.shape(1), head_dim = x.shape(2);
        MOE_CHECK(c.rows == tokens && s.rows == tokens && c.cols == s.cols, "[rope] cos has shape ",
                  shape_text(cos), ", sin ", shape_text(sin), "; ", tokens, " tokens are required");
        auto out = new_array<float>({tokens, heads, head_dim});
        float* data = out.mutable_data();
        {
          const py::gil_scoped_release release;
          const int64_t stride = heads * head_dim;
          rope(from, stride, tokens, heads, {head_dim, first, c.cols, interleaved}, c.data, s.data,
               data, stride);
        }
        return out;
      },
      py::arg("x"), py::arg("cos"), py::arg("sin"), py::arg("first"), py::arg("interleaved"));
}

}  // namespace moe::bindings
