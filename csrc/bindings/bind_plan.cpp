// The order in which experts see their tokens, the way there and back.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "bindings/array.h"
#include "moe/ops/combine.h"
#include "moe/ops/plan.h"
#include "moe/ops/tally.h"

namespace moe::bindings {

namespace {

template <class T>
py::array_t<T> array_of(const std::vector<T>& values) {
  auto array = new_array<T>({static_cast<py::ssize_t>(values.size())});
  std::copy(values.begin(), values.end(), array.mutable_data());
  return array;
}

Plan plan_of(const py::array& rows, const py::array& slots, const char* op) {
  const int32_t* row = data_of<int32_t>(rows, 1, op, "plan.rows");
  const int32_t* slot = data_of<int32_t>(slots, 1, op, "plan.slots");
  MOE_CHECK(rows.shape(0) == slots.shape(0), "[", op, "] plan.rows has ", rows.shape(0),
            " entries; plan.slots ", slots.shape(0));
  Plan plan;
  plan.rows.assign(row, row + rows.shape(0));
  plan.slots.assign(slot, slot + slots.shape(0));
  return plan;
}

}  // namespace

void bind_plan(py::module_& m) {
  m.def(
      "plan",
      [](const py::array& experts, int64_t expert_count) {
        const int32_t* ids = data_of<int32_t>(experts, 2, "plan", "experts");
        MOE_CHECK(expert_count >= 0, "[plan] E is ", expert_count, "; 0 or more is required");
        const int64_t tokens = experts.shape(0);
        const auto k = static_cast<int>(experts.shape(1));
        Plan plan;
        {
          const py::gil_scoped_release release;
          make_plan(ids, tokens, k, expert_count, &plan);
        }
        return std::tuple(array_of(plan.offsets), array_of(plan.rows), array_of(plan.slots));
      },
      py::arg("experts"), py::arg("expert_count"), "offsets, rows and slots of a Plan.");
  py::class_<ExpertTally>(m, "ExpertTally")
      .def(py::init<int64_t, int64_t>(), py::arg("layers"), py::arg("experts"))
      .def_property_readonly("tokens", &ExpertTally::tokens)
      .def_property_readonly(
          "counts",
          [](ExpertTally& tally) {
            auto counts = new_array<int64_t>({tally.layers(), tally.experts()});
            std::copy_n(tally.counts().data(), tally.counts().size(), counts.mutable_data());
            return counts;
          },
          "int64 [layers, experts] of finished passes, a copy.")
      .def(
          "count",
          [](ExpertTally& tally, int64_t layer, const py::array& experts) {
            const int32_t* ids = data_of<int32_t>(experts, 2, "tally", "experts");
            tally.count(layer, ids, experts.shape(0), static_cast<int>(experts.shape(1)));
          },
          py::arg("layer"), py::arg("experts"), "Counts the slots of experts [T, K] for a layer.")
      .def("finish", &ExpertTally::finish, py::arg("tokens"), "The running pass is complete.")
      .def("discard", &ExpertTally::discard, "Forgets what the running pass has counted.")
      .def("add_running", &ExpertTally::add_running, py::arg("other"), py::arg("tokens"),
           "Adds what the running pass of another tally has counted.");
  m.def(
      "permute",
      [](const py::array& x, const py::array& rows) {
        const auto bytes = matrix_of<uint8_t>(x, "permute", "x");
        const Plan plan = plan_of(rows, rows, "permute");
        auto out = new_array<uint8_t>({rows.shape(0), x.shape(1)});
        uint8_t* data = out.mutable_data();
        {
          const py::gil_scoped_release release;
          permute(bytes.data, bytes.rows, bytes.cols, plan, data);
        }
        return out;
      },
      py::arg("x"), py::arg("rows"), "Rows of bytes, gathered.");
  m.def(
      "combine",
      [](const py::array& y, const py::array& rows, const py::array& slots,
         const py::array& weights) {
        const auto values = matrix_of<float>(y, "combine", "y");
        const auto weight = matrix_of<float>(weights, "combine", "weights");
        const Plan plan = plan_of(rows, slots, "combine");
        auto out = new_array<float>({weight.rows, values.cols});
        float* data = out.mutable_data();
        {
          const py::gil_scoped_release release;
          combine(values, plan, weight.data, weight.rows, static_cast<int>(weight.cols), data);
        }
        return out;
      },
      py::arg("y"), py::arg("rows"), py::arg("slots"), py::arg("weights"));
}

}  // namespace moe::bindings
