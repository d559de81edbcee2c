// Routing rules, and which experts a token goes to.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <utility>

#include "bindings/array.h"
#include "moe/ops/capacity.h"
#include "moe/ops/router.h"

namespace moe::bindings {

namespace {

template <class T>
struct Named {
  const char* name;
  T value;
};

constexpr Named<Score> kScores[] = {
    {"softmax", Score::kSoftmax},
    {"softmax_topk", Score::kSoftmaxTopk},
    {"sigmoid", Score::kSigmoid},
    {"sqrtsoftplus", Score::kSqrtSoftplus},
    {"input_sigmoid", Score::kInputSigmoid},
    {"sparsemixer", Score::kSparseMixer},
};
constexpr Named<GroupScore> kGroupScores[] = {{"top2", GroupScore::kTop2},
                                              {"max", GroupScore::kMax}};
constexpr Named<bool> kGroupFills[] = {{"-inf", false}, {"0", true}};

template <class T, size_t n>
T parse(const Named<T> (&known)[n], const std::string& name, const char* argument) {
  std::string names;
  for (const Named<T>& entry : known) {
    if (name == entry.name) return entry.value;
    if (!names.empty()) names += ", ";
    names += entry.name;
  }
  throw ValueError(
      message("[route] ", argument, " is '", name, "'; one of ", names, " is required"));
}

RouterRule make_rule(const std::string& score, int top_k, int groups, int top_groups,
                     const std::string& group_score, const std::string& group_fill, bool normalize,
                     float normalize_eps, float normalize_min, float scale, float jitter_eps) {
  RouterRule rule;
  rule.score = parse(kScores, score, "score");
  rule.top_k = top_k;
  rule.groups = groups;
  rule.top_groups = top_groups;
  rule.group_score = parse(kGroupScores, group_score, "group_score");
  rule.group_fill_zero = parse(kGroupFills, group_fill, "group_fill");
  rule.normalize = normalize;
  rule.normalize_eps = normalize_eps;
  rule.normalize_min = normalize_min;
  rule.scale = scale;
  rule.jitter_eps = jitter_eps;
  return rule;
}

RouterInput input_of(const py::array& logits, const OptionalArray& select_bias,
                     const OptionalArray& noise, const OptionalArray& mask, bool check_finite,
                     const char* op) {
  RouterInput input;
  input.logits = matrix_of<float>(logits, op, "logits");
  const int64_t tokens = input.logits.rows, experts = input.logits.cols;
  input.check_finite = check_finite;
  if (noise) input.noise = matrix_of<float>(*noise, op, "noise");
  if (select_bias) {
    input.select_bias = data_of<float>(*select_bias, 1, op, "select_bias");
    MOE_CHECK(select_bias->shape(0) == experts, "[", op, "] select_bias has shape ",
              shape_text(*select_bias), "; [", experts, "] is required");
  }
  if (mask) {
    input.forbidden = reinterpret_cast<const uint8_t*>(data_of<bool>(*mask, -1, op, "mask"));
    const bool shared = mask->ndim() == 1 && mask->shape(0) == experts;
    const bool own = mask->ndim() == 2 && mask->shape(0) == tokens && mask->shape(1) == experts;
    MOE_CHECK(shared || own, "[", op, "] mask has shape ", shape_text(*mask), "; [", experts,
              "] or [", tokens, ", ", experts, "] is required");
    input.forbidden_stride = shared ? 0 : experts;
  }
  return input;
}

}  // namespace

void bind_router(py::module_& m) {
  py::class_<RouterRule>(m, "RouterRule")
      .def(py::init(&make_rule), py::arg("score"), py::arg("top_k"), py::arg("groups"),
           py::arg("top_groups"), py::arg("group_score"), py::arg("group_fill"),
           py::arg("normalize"), py::arg("normalize_eps"), py::arg("normalize_min"),
           py::arg("scale"), py::arg("jitter_eps"))
      .def_readonly("top_k", &RouterRule::top_k)
      .def_readonly("groups", &RouterRule::groups)
      .def_readonly("top_groups", &RouterRule::top_groups)
      .def_property_readonly(
          "weighs_input", [](const RouterRule& rule) { return rule.score == Score::kInputSigmoid; })
      .def(
          "with_top_k",
          [](RouterRule rule, int top_k) {
            rule.top_k = top_k;
            return rule;
          },
          py::arg("top_k"), "The same rule with another K.");
  m.def(
      "route",
      [](const py::array& logits, const RouterRule& rule, const OptionalArray& select_bias,
         const OptionalArray& noise, const OptionalArray& mask, bool check_finite) {
        const RouterInput input = input_of(logits, select_bias, noise, mask, check_finite, "route");
        check_rule(rule, input.logits.cols);
        auto experts = new_array<int32_t>({input.logits.rows, rule.top_k});
        auto weights = new_array<float>({input.logits.rows, rule.top_k});
        int32_t* ids = experts.mutable_data();
        float* values = weights.mutable_data();
        {
          const py::gil_scoped_release release;
          route(input, rule, ids, values);
        }
        return std::pair(std::move(experts), std::move(weights));
      },
      py::arg("logits"), py::arg("rule"), py::arg("select_bias"), py::arg("noise"), py::arg("mask"),
      py::arg("check_finite"));
  m.def(
      "weigh",
      [](const py::array& logits, const RouterRule& rule, const py::array& experts,
         const OptionalArray& noise, const OptionalArray& mask) {
        const RouterInput input = input_of(logits, std::nullopt, noise, mask, false, "weigh");
        const int32_t* ids = data_of<int32_t>(experts, 2, "weigh", "experts");
        MOE_CHECK(experts.shape(0) == input.logits.rows, "[weigh] experts has shape ",
                  shape_text(experts), "; ", input.logits.rows, " tokens are required");
        RouterRule wide = rule;
        wide.top_k = static_cast<int>(experts.shape(1));
        auto weights = new_array<float>({input.logits.rows, wide.top_k});
        float* values = weights.mutable_data();
        {
          const py::gil_scoped_release release;
          weigh(input, wide, ids, values);
        }
        return weights;
      },
      py::arg("logits"), py::arg("rule"), py::arg("experts"), py::arg("noise"), py::arg("mask"));
  m.def(
      "limit_capacity",
      [](const py::array& experts, int64_t expert_count, int64_t capacity,
         const OptionalArray& ranking) {
        const int32_t* ids = data_of<int32_t>(experts, 2, "limit_capacity", "experts");
        const int64_t tokens = experts.shape(0);
        const auto k = static_cast<int>(experts.shape(1));
        MatrixView<const int32_t> order;
        if (ranking) {
          order = matrix_of<int32_t>(*ranking, "limit_capacity", "ranking");
          MOE_CHECK(order.rows == tokens, "[limit_capacity] ranking has ", order.rows, " tokens; ",
                    tokens, " are required");
        }
        auto limited = new_array<int32_t>({tokens, k});
        int32_t* out = limited.mutable_data();
        std::copy_n(ids, tokens * k, out);
        int64_t dropped = 0;
        {
          const py::gil_scoped_release release;
          dropped = limit_capacity(out, tokens, k, expert_count, capacity, order);
        }
        return std::pair(std::move(limited), dropped);
      },
      py::arg("experts"), py::arg("expert_count"), py::arg("capacity"), py::arg("ranking"));
  m.def(
      "choose_tokens",
      [](const py::array& scores, int64_t capacity) {
        const auto view = matrix_of<float>(scores, "route_expert_choice", "scores");
        auto chosen = new_array<bool>({view.rows, view.cols});
        auto* out = reinterpret_cast<uint8_t*>(chosen.mutable_data());
        {
          const py::gil_scoped_release release;
          choose_tokens(view, capacity, out);
        }
        return chosen;
      },
      py::arg("scores"), py::arg("capacity"));
}

}  // namespace moe::bindings
