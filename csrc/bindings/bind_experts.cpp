// The fused block.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "bindings/array.h"
#include "moe/ops/moe_block.h"
#include "moe/ops/tally.h"

namespace moe::bindings {

namespace {

Activation parse_activation(const std::string& name) {
  if (name == "silu") return Activation::kSilu;
  if (name == "gelu_tanh") return Activation::kGeluTanh;
  if (name == "gelu") return Activation::kGelu;
  if (name == "relu") return Activation::kRelu;
  if (name == "relu2") return Activation::kRelu2;
  if (name == "identity") return Activation::kIdentity;
  if (name == "swiglu_oai") return Activation::kSwigluOai;
  throw ValueError(message("[activation] '", name,
                           "'; known: silu, gelu, gelu_tanh, relu, relu2, identity, swiglu_oai"));
}

// What an ExpertBank points at, kept alive by Python.
struct Bank {
  const PackedWeight* gate;
  const PackedWeight* up;
  const PackedWeight* down;
  std::optional<py::array> gate_bias, up_bias, down_bias;
  ActivationSpec activation;

  ExpertBank view() const {
    return {gate,
            up,
            down,
            bias(gate_bias, up->rows(), "gate_bias"),
            bias(up_bias, up->rows(), "up_bias"),
            bias(down_bias, down->rows(), "down_bias"),
            activation};
  }
  const float* bias(const std::optional<py::array>& array, int64_t width, const char* name) const {
    if (!array) return nullptr;
    const float* data = data_of<float>(*array, 2, "moe_ffn", name);
    MOE_CHECK(array->shape(0) == up->experts() && array->shape(1) == width, "[moe_ffn] ", name,
              " has shape ", shape_text(*array), "; [", up->experts(), ", ", width,
              "] is required");
    return data;
  }
};

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

/// Memory of another library's 16-bit floats comes as int16; `name` says what it means.
DType named_dtype(const std::string& name, const py::array& array, const char* argument) {
  const bool is_half = name == "bfloat16" || name == "float16";
  const bool fits = is_half ? py::isinstance<py::array_t<int16_t>>(array)
                            : name == "float32" && py::isinstance<py::array_t<float>>(array);
  if (!fits || array.ndim() != 2 || (array.flags() & py::array::c_style) == 0) {
    throw TypeError(message("[moe_ffn] ", argument, " is not a C-contiguous matrix of ", name));
  }
  return name == "bfloat16" ? DType::kBf16 : is_half ? DType::kF16 : DType::kF32;
}

void ffn_plain(const py::array& x, const std::string& dtype, const py::array& experts,
               const py::array& weights, const std::string& weights_dtype, bool weighs_input,
               const Bank& bank, py::array out) {
  PlainTokens in;
  in.dtype = named_dtype(dtype, x, "x");
  in.x = x.data();
  in.tokens = x.shape(0);
  in.hidden = x.shape(1);
  in.experts = data_of<int64_t>(experts, 2, "moe_ffn", "experts");
  in.weights_dtype = named_dtype(weights_dtype, weights, "weights");
  in.weights = weights.data();
  in.k = static_cast<int>(experts.shape(1));
  in.weighs_input = weighs_input;
  MOE_CHECK(experts.shape(0) == in.tokens && weights.shape(0) == in.tokens &&
                weights.shape(1) == experts.shape(1),
            "[moe_ffn] experts are ", shape_text(experts), ", weights ", shape_text(weights),
            "; x is ", shape_text(x));
  named_dtype(dtype, out, "out");
  MOE_CHECK(out.shape(0) == in.tokens && out.shape(1) == in.hidden, "[moe_ffn] out is ",
            shape_text(out), "; x is ", shape_text(x));
  const ExpertBank routed = bank.view();
  void* to = out.mutable_data();
  const py::gil_scoped_release release;
  moe_ffn_plain(in, routed, Compute::kAuto, to);
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
  m.def("moe_ffn_plain", &ffn_plain, py::arg("x"), py::arg("dtype"), py::arg("experts"),
        py::arg("weights"), py::arg("weights_dtype"), py::arg("weighs_input"), py::arg("bank"),
        py::arg("out"), "moe_ffn from and to the memory of another library.");
}

}  // namespace moe::bindings
