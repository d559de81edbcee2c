// The fused block.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "bindings/activation.h"
#include "bindings/array.h"
#include "bindings/bank.h"
#include "bindings/dlpack.h"
#include "moe/base/parallel.h"
#include "moe/ops/moe_block.h"
#include "moe/ops/tally.h"

namespace moe::bindings {

namespace {

Activation parse_activation(const std::string& name) {
  if (const auto found = find_activation(name)) return *found;
  throw ValueError(message("[activation] '", name,
                           "'; known: silu, gelu, gelu_tanh, relu, relu2, identity, swiglu_oai"));
}

py::array_t<float> ffn(const py::array& x, const py::array& experts, const py::array& weights,
                       bool weighs_input, const Bank& bank, std::optional<const Bank*> maybe_shared,
                       const std::optional<py::array>& shared_scale, const std::string& compute,
                       std::optional<ExpertTally*> tally, int64_t layer) {
  const auto rows = matrix_of<float>(x, "moe_ffn", "x");
  AssignmentView assignment;
  assignment.experts = data_of<int32_t>(experts, 2, "moe_ffn", "assignment.experts");
  assignment.weights = data_of<float>(weights, 2, "moe_ffn", "assignment.weights");
  assignment.tokens = experts.shape(0);
  assignment.k = static_cast<int>(experts.shape(1));
  assignment.weighs_input = weighs_input;
  MOE_CHECK(weights.shape(0) == experts.shape(0) && weights.shape(1) == experts.shape(1),
            "[moe_ffn] assignment.weights has shape ", shape_text(weights), "; experts ",
            shape_text(experts));
  const ExpertBank routed = bank.view();
  const Bank* shared = maybe_shared.value_or(nullptr);
  SharedExpert shared_view;
  if (shared != nullptr) {
    shared_view.bank = shared->view();
    if (shared_scale) {
      shared_view.scale = data_of<float>(*shared_scale, 1, "moe_ffn", "shared_scale");
      MOE_CHECK(shared_scale->shape(0) == rows.rows, "[moe_ffn] shared_scale has ",
                shared_scale->shape(0), " entries; x has ", rows.rows, " rows");
    }
  }
  const Compute how = parse_compute(compute);
  auto out = new_array<float>({rows.rows, rows.cols});
  MatrixView<float> to(out.mutable_data(), rows.rows, rows.cols);
  {
    const py::gil_scoped_release release;
    moe_ffn(rows, assignment, routed, shared != nullptr ? &shared_view : nullptr, how, to);
  }
  if (ExpertTally* counts = tally.value_or(nullptr)) {
    counts->count(layer, assignment.experts, assignment.tokens, assignment.k);
  }
  return out;
}

DType plain_dtype(const SharedTensor& tensor) {
  if (tensor.is(kDlFloat, 32)) return DType::kF32;
  if (tensor.is(kDlBfloat, 16)) return DType::kBf16;
  if (tensor.is(kDlFloat, 16)) return DType::kF16;
  tensor.fail("is not float32, bfloat16 or float16");
}

SharedTensor contiguous(const py::object& capsule, const char* argument) {
  const SharedTensor tensor(capsule, "moe_ffn", argument);
  if (!tensor.contiguous()) tensor.fail("is not C-contiguous");
  return tensor;
}

void ffn_plain(const py::object& x_capsule, const py::object& experts_capsule,
               const py::object& weights_capsule, bool weighs_input, const Bank& bank,
               const py::object& out_capsule, int threads) {
  const SharedTensor x = contiguous(x_capsule, "x");
  const SharedTensor experts = contiguous(experts_capsule, "experts");
  const SharedTensor weights = contiguous(weights_capsule, "weights");
  const SharedTensor out = contiguous(out_capsule, "out");
  MOE_CHECK(x.ndim() >= 1 && x.shape(x.ndim() - 1) > 0, "[moe_ffn] x is ", x.shape_text(),
            "; [..., hidden] is required");
  PlainTokens in;
  in.dtype = plain_dtype(x);
  in.x = x.data();
  in.hidden = x.shape(x.ndim() - 1);
  in.tokens = x.count() / in.hidden;
  if (!experts.is(kDlInt, 64)) experts.fail("is not int64");
  in.experts = reinterpret_cast<const int64_t*>(experts.data());
  in.weights_dtype = plain_dtype(weights);
  in.weights = weights.data();
  in.weighs_input = weighs_input;
  MOE_CHECK(experts.ndim() == 2 && weights.ndim() == 2 && experts.shape(0) == in.tokens &&
                weights.shape(0) == in.tokens && weights.shape(1) == experts.shape(1),
            "[moe_ffn] experts are ", experts.shape_text(), ", weights ", weights.shape_text(),
            "; x is ", x.shape_text());
  in.k = static_cast<int>(experts.shape(1));
  if (plain_dtype(out) != in.dtype) out.fail("has another dtype than x");
  MOE_CHECK(out.count() == x.count(), "[moe_ffn] out is ", out.shape_text(), "; x is ",
            x.shape_text());
  const ExpertBank routed = bank.view();
  const ThreadLimit limit(threads);
  const py::gil_scoped_release release;
  moe_ffn_plain(in, routed, Compute::kAuto, out.data());
}

}  // namespace

void bind_experts(py::module_& m) {
  py::class_<Bank>(m, "ExpertBank")
      .def(py::init([](std::optional<const PackedWeight*> gate, const PackedWeight& up,
                       const PackedWeight& down, std::optional<py::array> gate_bias,
                       std::optional<py::array> up_bias, std::optional<py::array> down_bias,
                       const std::string& activation, float limit) {
             Bank bank{gate.value_or(nullptr),
                       &up,
                       &down,
                       std::move(gate_bias),
                       std::move(up_bias),
                       std::move(down_bias),
                       {parse_activation(activation), limit}};
             bank.view();  // wrong biases are told now, not at the first token
             return bank;
           }),
           py::arg("gate"), py::arg("up"), py::arg("down"), py::arg("gate_bias"),
           py::arg("up_bias"), py::arg("down_bias"), py::arg("activation"), py::arg("limit"),
           py::keep_alive<1, 2>(), py::keep_alive<1, 3>(), py::keep_alive<1, 4>());
  m.def("moe_ffn", &ffn, py::arg("x"), py::arg("experts"), py::arg("weights"),
        py::arg("weighs_input"), py::arg("bank"), py::arg("shared"), py::arg("shared_scale"),
        py::arg("compute"), py::arg("tally"), py::arg("layer"));
  m.def("moe_ffn_plain", &ffn_plain, py::arg("x"), py::arg("experts"), py::arg("weights"),
        py::arg("weighs_input"), py::arg("bank"), py::arg("out"), py::arg("threads"),
        "moe_ffn from and to the memory of another library, as DLPack capsules, on no more threads "
        "than that library uses.");
}

}  // namespace moe::bindings
