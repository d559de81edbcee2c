// A decoded token's way through half a layer.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "bindings/array.h"
#include "bindings/bank.h"
#include "bindings/heads.h"
#include "moe/ops/latent_step.h"
#include "moe/ops/tally.h"
#include "moe/ops/token_step.h"

namespace moe::bindings {

namespace {

constexpr auto kOp = "token_step";
// What a LinearView and an RmsNormView point at.
struct Linear {
  const PackedWeight* weight;
  OptionalArray bias;

  LinearView view() const { return {weight, vector_of(bias, weight->rows(), kOp, "bias")}; }
};
struct RmsNorm {
  OptionalArray weight;
  float eps, offset;

  RmsNormView view() const {
    if (!weight) return {nullptr, 0, offset, eps};
    return {data_of<float>(*weight, 1, kOp, "weight"), weight->shape(0), offset, eps};
  }
};

// Steps and the arrays of their own; Python keeps alive what the views point at.
struct BoundAttention {
  AttentionStep step;
  OptionalArray sinks;
};
struct BoundExperts {
  ExpertsStep step;
  OptionalArray select_bias;
};

template <class Holder>
auto view_of(std::optional<const Holder*> part) -> std::optional<decltype((*part)->view())> {
  const Holder* given = part.value_or(nullptr);
  return given != nullptr ? std::optional(given->view()) : std::nullopt;
}

BoundAttention make_attention(const RmsNorm& norm, const Linear& q, const Linear& k,
                              const Linear& v, const Linear& o,
                              std::optional<const RmsNorm*> q_norm,
                              std::optional<const RmsNorm*> k_norm, int64_t heads, int64_t kv_heads,
                              bool interleaved, float scale, float softcap, int64_t window,
                              int64_t chunk, OptionalArray sinks) {
  BoundAttention bound;
  AttentionStep& step = bound.step;
  step.norm = norm.view();
  step.q = q.view();
  step.k = k.view();
  step.v = v.view();
  step.o = o.view();
  step.q_norm = view_of(q_norm);
  step.k_norm = view_of(k_norm);
  step.heads = heads;
  step.kv_heads = kv_heads;
  step.interleaved = interleaved;
  step.scale = scale;
  step.softcap = softcap;
  step.window = window;
  step.chunk = chunk;
  bound.sinks = std::move(sinks);
  step.sinks = vector_of(bound.sinks, heads, kOp, "sinks");
  check_step(step);
  return bound;
}

LatentStep make_latent(const RmsNorm& norm, const Linear& q, const Linear& kv_a,
                       const RmsNorm& kv_norm, const PackedWeight& key_up,
                       const PackedWeight& value_up, const Linear& o,
                       std::optional<const Linear*> q_a, std::optional<const RmsNorm*> q_norm,
                       bool interleaved, float scale) {
  LatentStep step;
  step.norm = norm.view();
  step.kv_norm = kv_norm.view();
  step.q = q.view();
  step.kv_a = kv_a.view();
  step.o = o.view();
  step.q_a = view_of(q_a);
  step.q_norm = view_of(q_norm);
  step.key_up = &key_up;
  step.value_up = &value_up;
  step.interleaved = interleaved;
  step.scale = scale;
  check_step(step);
  return step;
}

BoundExperts make_experts(const RmsNorm& norm, const Linear& router, const RouterRule& rule,
                          OptionalArray select_bias, const Bank& experts,
                          std::optional<const Bank*> shared,
                          std::optional<const Linear*> shared_gate, const std::string& compute) {
  BoundExperts bound;
  ExpertsStep& step = bound.step;
  step.norm = norm.view();
  step.router = router.view();
  step.rule = rule;
  bound.select_bias = std::move(select_bias);
  step.select_bias = vector_of(bound.select_bias, step.router.rows(), kOp, "select_bias");
  step.experts = experts.view();
  step.shared = view_of(shared);
  step.shared_gate = view_of(shared_gate);
  step.compute = parse_compute(compute);
  check_step(step);
  return bound;
}

/// x [1, hidden]
const float* row_of(const py::array& x, int64_t hidden, const char* name) {
  const auto view = matrix_of<float>(x, kOp, name);
  MOE_CHECK(view.rows == 1 && view.cols == hidden, "[token_step] ", name, " has shape ",
            shape_text(x), "; [1, ", hidden, "] is required");
  return view.data;
}

using Angles = std::optional<std::pair<py::array, py::array>>;

TokenAngles angles_of(const Angles& angles) {
  if (!angles) return {};
  const auto cos = matrix_of<float>(angles->first, kOp, "cos");
  const auto sin = matrix_of<float>(angles->second, kOp, "sin");
  MOE_CHECK(cos.rows == 1 && sin.rows == 1 && cos.cols == sin.cols, "[token_step] cos has shape ",
            shape_text(angles->first), ", sin ", shape_text(angles->second),
            "; one row each is required");
  return {cos.data, sin.data, cos.cols};
}

py::array_t<float> run_attention(const BoundAttention& bound, const py::array& x,
                                 const Angles& angles, py::array keys, py::array values,
                                 std::optional<py::array> key_scales,
                                 std::optional<py::array> value_scales, int64_t position) {
  const int64_t hidden = bound.step.q.cols();
  const float* row = row_of(x, hidden, "x");
  const TokenAngles token = angles_of(angles);
  const TokenCache kept_keys = cache_rows_of(keys, key_scales, kOp, "keys");
  const TokenCache kept_values = cache_rows_of(values, value_scales, kOp, "values");
  auto out = new_array<float>({1, hidden});
  float* data = out.mutable_data();
  {
    const py::gil_scoped_release release;
    attention_step(bound.step, row, token, kept_keys, kept_values, position, data);
  }
  return out;
}

py::array_t<float> run_latent(const LatentStep& step, const py::array& x, const Angles& angles,
                              py::array entries, std::optional<py::array> scales,
                              int64_t position) {
  const int64_t hidden = step.hidden();
  const float* row = row_of(x, hidden, "x");
  const TokenAngles token = angles_of(angles);
  const TokenCache kept = cache_rows_of(entries, scales, kOp, "entries");
  auto out = new_array<float>({1, hidden});
  float* data = out.mutable_data();
  {
    const py::gil_scoped_release release;
    latent_step(step, row, token, kept, position, data);
  }
  return out;
}

using Arrays = std::tuple<py::array_t<float>, py::array_t<int32_t>, py::array_t<float>>;

Arrays run_experts(const BoundExperts& bound, const py::array& x, const py::array& added,
                   std::optional<ExpertTally*> tally, int64_t layer) {
  const ExpertsStep& step = bound.step;
  const int64_t hidden = step.router.cols();
  const float *row = row_of(x, hidden, "x"), *other = row_of(added, hidden, "added");
  auto experts = new_array<int32_t>({1, step.rule.top_k});
  auto weights = new_array<float>({1, step.rule.top_k});
  auto out = new_array<float>({1, hidden});
  int32_t* chosen = experts.mutable_data();
  float* by = weights.mutable_data();
  float* data = out.mutable_data();
  {
    const py::gil_scoped_release release;
    experts_step(step, row, other, chosen, by, data);
  }
  if (ExpertTally* counts = tally.value_or(nullptr)) {
    counts->count(layer, chosen, 1, step.rule.top_k);
  }
  return {std::move(out), std::move(experts), std::move(weights)};
}

}  // namespace

void bind_token_step(py::module_& m) {
  py::class_<Linear>(m, "LinearView", "A packed matrix and its bias.")
      .def(py::init([](const PackedWeight& weight, OptionalArray bias) {
             Linear linear{&weight, std::move(bias)};
             linear.view();  // a wrong bias is told now
             return linear;
           }),
           py::arg("weight"), py::arg("bias"), py::keep_alive<1, 2>());
  py::class_<RmsNorm>(m, "RmsNormView", "rms_norm's arguments.")
      .def(py::init([](OptionalArray weight, float eps, float offset) {
             RmsNorm norm{std::move(weight), eps, offset};
             norm.view();  // a wrong weight is told now
             return norm;
           }),
           py::arg("weight"), py::arg("eps"), py::arg("offset"));

  py::class_<BoundAttention>(m, "AttentionStep",
                             "What attention adds to a token's row, its norm included.")
      .def(py::init(&make_attention), py::arg("norm"), py::arg("q"), py::arg("k"), py::arg("v"),
           py::arg("o"), py::arg("q_norm"), py::arg("k_norm"), py::arg("heads"),
           py::arg("kv_heads"), py::arg("interleaved"), py::arg("scale"), py::arg("softcap"),
           py::arg("window"), py::arg("chunk"), py::arg("sinks"), py::keep_alive<1, 2>(),
           py::keep_alive<1, 3>(), py::keep_alive<1, 4>(), py::keep_alive<1, 5>(),
           py::keep_alive<1, 6>(), py::keep_alive<1, 7>(), py::keep_alive<1, 8>())
      .def("run", &run_attention, py::arg("x"), py::arg("angles"), py::arg("keys"),
           py::arg("values"), py::arg("key_scales"), py::arg("value_scales"), py::arg("position"),
           "x [1, H]; the caches [room, heads, dim] with scales [room, heads] or None.");
  py::class_<LatentStep>(m, "LatentStep",
                         "What latent attention adds to a token's row, its norm included.")
      .def(py::init(&make_latent), py::arg("norm"), py::arg("q"), py::arg("kv_a"),
           py::arg("kv_norm"), py::arg("key_up"), py::arg("value_up"), py::arg("o"), py::arg("q_a"),
           py::arg("q_norm"), py::arg("interleaved"), py::arg("scale"), py::keep_alive<1, 2>(),
           py::keep_alive<1, 3>(), py::keep_alive<1, 4>(), py::keep_alive<1, 5>(),
           py::keep_alive<1, 6>(), py::keep_alive<1, 7>(), py::keep_alive<1, 8>(),
           py::keep_alive<1, 9>(), py::keep_alive<1, 10>())
      .def("run", &run_latent, py::arg("x"), py::arg("angles"), py::arg("entries"),
           py::arg("scales"), py::arg("position"),
           "x [1, H]; the cache [room, 1, L + R] with scales [room, 1] or None.");
  py::class_<BoundExperts>(
      m, "ExpertsStep", "x + added and what the experts add to it, their norm and router included.")
      .def(py::init(&make_experts), py::arg("norm"), py::arg("router"), py::arg("rule"),
           py::arg("select_bias"), py::arg("experts"), py::arg("shared"), py::arg("shared_gate"),
           py::arg("compute"), py::keep_alive<1, 2>(), py::keep_alive<1, 3>(),
           py::keep_alive<1, 6>(), py::keep_alive<1, 7>(), py::keep_alive<1, 8>())
      .def("run", &run_experts, py::arg("x"), py::arg("added"), py::arg("tally"), py::arg("layer"),
           "x, added [1, H] -> (rows [1, H], experts [1, K], weights [1, K]).");
}

}  // namespace moe::bindings
