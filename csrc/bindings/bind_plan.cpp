// The order in which experts see their tokens, the way there and back.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "bindings/array.h"
#include "moe/ops/combine.h"
#include "moe/ops/plan.h"

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
  m.def(
      "count_experts",
      [](const std::vector<py::array>& experts, const std::vector<int64_t>& rows,
         py::array_t<int64_t, py::array::c_style>& counts) {
        MOE_CHECK(experts.size() == rows.size() && counts.ndim() == 2, "[count_experts] ",
                  experts.size(), " layers, ", rows.size(), " rows of counts ", shape_text(counts),
                  "; a row of [layers, E] for each is required");
        int64_t* table = counts.mutable_data();
        for (size_t i = 0; i < rows.size(); ++i) {
          MOE_CHECK(rows[i] >= 0 && rows[i] < counts.shape(0), "[count_experts] row ", rows[i],
                    "; there are ", counts.shape(0));
          const int32_t* ids = data_of<int32_t>(experts[i], 2, "count_experts", "experts");
          count_slots(ids, experts[i].shape(0), static_cast<int>(experts[i].shape(1)),
                      counts.shape(1), table + rows[i] * counts.shape(1));
        }
      },
      py::arg("experts"), py::arg("rows"), py::arg("counts").noconvert(),
      "Adds to counts [layers, E] what each layer's assignment has; rows says which row is whose.");
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
