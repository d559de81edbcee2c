// Recurrent mixers: short convolution, gates, states.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "bindings/activation.h"
#include "bindings/array.h"
#include "moe/ops/causal_conv.h"
#include "moe/ops/gating.h"
#include "moe/ops/recurrence.h"

namespace moe::bindings {

namespace {

/// What came out, and the state to go on from (or the second of two results).
using Pair = std::pair<py::array_t<float>, py::array_t<float>>;
using Shape = std::vector<py::ssize_t>;

/// An array of exactly this shape, or null.
const float* shaped(const OptionalArray& array, const Shape& shape, const char* op,
                    const char* name) {
  if (!array) return nullptr;
  const float* data = data_of<float>(*array, static_cast<int>(shape.size()), op, name);
  std::string wanted = "[";
  bool same = true;
  for (size_t i = 0; i < shape.size(); ++i) {
    same = same && array->shape(static_cast<py::ssize_t>(i)) == shape[i];
    wanted += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  MOE_CHECK(same, "[", op, "] ", name, " has shape ", shape_text(*array), "; ", wanted,
            "] is required");
  return data;
}

std::optional<Gating> find_gating(const std::string& name) {
  if (name == "identity") return Gating::kIdentity;
  if (name == "silu") return Gating::kSilu;
  if (name == "sigmoid") return Gating::kSigmoid;
  return std::nullopt;
}
Gating gating_of(const std::string& name, const char* op) {
  if (const auto found = find_gating(name)) return *found;
  throw ValueError(
      message("[", op, "] activation is ", name, "; one of identity, silu, sigmoid is required"));
}

Pair run_conv(const py::array& x, const py::array& weight, const OptionalArray& bias,
              const OptionalArray& state, const std::string& activation) {
  const char* op = "causal_conv";
  const auto rows = matrix_of<float>(x, op, "x");
  ConvParts parts;
  parts.weight = data_of<float>(weight, 2, op, "weight");
  parts.taps = weight.shape(0);
  parts.weight = shaped(weight, {parts.taps, rows.cols}, op, "weight");
  parts.bias = shaped(bias, {rows.cols}, op, "bias");
  parts.state = shaped(state, {parts.taps - 1, rows.cols}, op, "state");
  parts.activation = gating_of(activation, op);
  auto out = new_array<float>({rows.rows, rows.cols});
  auto next = new_array<float>({std::max<int64_t>(0, parts.taps - 1), rows.cols});
  float *data = out.mutable_data(), *after = next.mutable_data();
  {
    const py::gil_scoped_release release;
    causal_conv(rows, parts, data, after);
  }
  return Pair(std::move(out), std::move(next));
}

py::array_t<float> run_gate(const OptionalArray& x, const py::array& gates,
                            const std::string& activation) {
  const auto by = matrix_of<float>(gates, "gate", "gate");
  MatrixView<const float> rows;
  if (x) rows = {shaped(x, {by.rows, by.cols}, "gate", "x"), by.rows, by.cols};
  const auto gating = find_gating(activation);
  const auto of_experts = find_activation(activation);
  MOE_CHECK(gating || (of_experts && *of_experts != Activation::kSwigluOai),
            "[gate] activation is ", activation,
            "; one of identity, silu, sigmoid, gelu, gelu_tanh, relu, relu2 is required");
  auto out = new_array<float>({by.rows, by.cols});
  float* data = out.mutable_data();
  {
    const py::gil_scoped_release release;
    if (gating) {
      gate(rows, by, *gating, data);
    } else {
      gate(rows, by, *of_experts, data);
    }
  }
  return out;
}

py::array_t<float> run_gated_norm(const py::array& x, const py::array& gates,
                                  const py::array& weight, double eps,
                                  const std::string& activation, bool gate_first, int64_t groups) {
  const char* op = "gated_rms_norm";
  const auto rows = matrix_of<float>(x, op, "x");
  const MatrixView<const float> by(shaped(gates, {rows.rows, rows.cols}, op, "gate"), rows.rows,
                                   rows.cols);
  GatedNorm norm;
  norm.weight = shaped(weight, {rows.cols}, op, "weight");
  norm.eps = static_cast<float>(eps);
  norm.gating = gating_of(activation, op);
  norm.gate_first = gate_first;
  norm.groups = groups;
  auto out = new_array<float>({rows.rows, rows.cols});
  float* data = out.mutable_data();
  {
    const py::gil_scoped_release release;
    gated_rms_norm(rows, by, norm, data);
  }
  return out;
}

Pair run_decay(const py::array& x, const py::array& rate, const OptionalArray& bias, double low,
               double high, double bound) {
  const char* op = "decay_factors";
  const auto rows = matrix_of<float>(x, op, "x");
  DecayParts parts;
  parts.rate = shaped(rate, {rows.cols}, op, "rate");
  parts.bias = shaped(bias, {rows.cols}, op, "bias");
  parts.low = static_cast<float>(low);
  parts.high = static_cast<float>(high);
  parts.bound = static_cast<float>(bound);
  auto decay = new_array<float>({rows.rows, rows.cols});
  auto step = new_array<float>({rows.rows, rows.cols});
  float *decays = decay.mutable_data(), *steps = step.mutable_data();
  {
    const py::gil_scoped_release release;
    decay_factors(rows, parts, decays, steps);
  }
  return Pair(std::move(decay), std::move(step));
}

py::array_t<float> run_step(const py::array& x, const OptionalArray& bias, double low,
                            double high) {
  const auto rows = matrix_of<float>(x, "time_step", "x");
  DecayParts parts;
  parts.bias = shaped(bias, {rows.cols}, "time_step", "bias");
  parts.low = static_cast<float>(low);
  parts.high = static_cast<float>(high);
  auto step = new_array<float>({rows.rows, rows.cols});
  float* data = step.mutable_data();
  {
    const py::gil_scoped_release release;
    decay_factors(rows, parts, nullptr, data);
  }
  return step;
}

Pair run_states(const char* op, const py::array& query, const py::array& key,
                const py::array& value, const py::array& decay, const OptionalArray& scale,
                const OptionalArray& skip, bool delta, const OptionalArray& state) {
  HeadStates in;
  in.query = data_of<float>(query, 3, op, "query");
  in.value = data_of<float>(value, 3, op, "value");
  in.tokens = query.shape(0);
  in.key_heads = query.shape(1);
  in.key_dim = query.shape(2);
  in.heads = value.shape(1);
  in.value_dim = value.shape(2);
  MOE_CHECK(in.key_heads > 0 && in.heads % in.key_heads == 0, "[", op, "] value has ", in.heads,
            " heads, query ", in.key_heads, "; a multiple is required");
  in.key = shaped(key, {in.tokens, in.key_heads, in.key_dim}, op, "key");
  in.value = shaped(value, {in.tokens, in.heads, in.value_dim}, op, "value");
  in.decay_per_key = decay.ndim() == 3;
  in.decay_fixed = decay.ndim() == 1;
  in.decay = in.decay_fixed     ? shaped(decay, {in.heads}, op, "decay")
             : in.decay_per_key ? shaped(decay, {in.tokens, in.heads, in.key_dim}, op, "decay")
                                : shaped(decay, {in.tokens, in.heads}, op, "decay");
  in.scale = shaped(scale, {in.tokens, in.heads}, op, "scale");
  in.skip = shaped(skip, {in.heads}, op, "skip");
  in.delta = delta;
  in.state = shaped(state, {in.heads, in.key_dim, in.value_dim}, op, "state");
  auto out = new_array<float>({in.tokens, in.heads, in.value_dim});
  auto next = new_array<float>({in.heads, in.key_dim, in.value_dim});
  float *data = out.mutable_data(), *after = next.mutable_data();
  {
    const py::gil_scoped_release release;
    advance_states(in, data, after);
  }
  return Pair(std::move(out), std::move(next));
}

Pair run_scan(const py::array& x, const py::array& step, const py::array& rate, const py::array& b,
              const py::array& c, const OptionalArray& skip, const OptionalArray& state) {
  const char* op = "selective_scan";
  ScanInputs in;
  in.x = data_of<float>(x, 2, op, "x");
  in.tokens = x.shape(0);
  in.channels = x.shape(1);
  in.rate = data_of<float>(rate, 2, op, "rate");
  in.states = rate.shape(0);
  in.rate = shaped(rate, {in.states, in.channels}, op, "rate");
  in.step = shaped(step, {in.tokens, in.channels}, op, "step");
  in.b = shaped(b, {in.tokens, in.states}, op, "b");
  in.c = shaped(c, {in.tokens, in.states}, op, "c");
  in.skip = shaped(skip, {in.channels}, op, "skip");
  in.state = shaped(state, {in.states, in.channels}, op, "state");
  auto out = new_array<float>({in.tokens, in.channels});
  auto next = new_array<float>({in.states, in.channels});
  float *data = out.mutable_data(), *after = next.mutable_data();
  {
    const py::gil_scoped_release release;
    selective_scan(in, data, after);
  }
  return Pair(std::move(out), std::move(next));
}

}  // namespace

void bind_recurrence(py::module_& m) {
  m.def("causal_conv", &run_conv, py::arg("x"), py::arg("weight"), py::arg("bias"),
        py::arg("state"), py::arg("activation"));
  m.def("gate", &run_gate, py::arg("x"), py::arg("gate"), py::arg("activation"));
  m.def("gated_rms_norm", &run_gated_norm, py::arg("x"), py::arg("gate"), py::arg("weight"),
        py::arg("eps"), py::arg("activation"), py::arg("gate_first"), py::arg("groups"));
  m.def("decay_factors", &run_decay, py::arg("x"), py::arg("rate"), py::arg("bias"), py::arg("low"),
        py::arg("high"), py::arg("bound"));
  m.def("time_step", &run_step, py::arg("x"), py::arg("bias"), py::arg("low"), py::arg("high"));
  m.def("advance_states", &run_states, py::arg("op"), py::arg("query"), py::arg("key"),
        py::arg("value"), py::arg("decay"), py::arg("scale"), py::arg("skip"), py::arg("delta"),
        py::arg("state"));
  m.def("selective_scan", &run_scan, py::arg("x"), py::arg("step"), py::arg("rate"), py::arg("b"),
        py::arg("c"), py::arg("skip"), py::arg("state"));
}

}  // namespace moe::bindings
