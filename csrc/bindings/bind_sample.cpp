// The next token.

#include <pybind11/pybind11.h>

#include "bindings/array.h"
#include "moe/ops/sample.h"

namespace moe::bindings {

void bind_sample(py::module_& m) {
  m.def(
      "sample",
      [](const py::array& logits, double temperature, int64_t top_k, double top_p, double min_p,
         const py::array& seeds, const py::array& steps) {
        const auto view = matrix_of<float>(logits, "sample", "logits");
        const uint64_t* seed = data_of<uint64_t>(seeds, 1, "sample", "seed");
        const uint64_t* step = data_of<uint64_t>(steps, 1, "sample", "step");
        MOE_CHECK(seeds.shape(0) == view.rows && steps.shape(0) == view.rows, "[sample] seed has ",
                  seeds.shape(0), " entries, step ", steps.shape(0), "; one for each of ",
                  view.rows, " rows is required");
        auto ids = new_array<int64_t>({view.rows});
        int64_t* data = ids.mutable_data();
        {
          const py::gil_scoped_release release;
          sample(view, {temperature, top_k, top_p, min_p}, seed, step, data);
        }
        return ids;
      },
      py::arg("logits"), py::arg("temperature"), py::arg("top_k"), py::arg("top_p"),
      py::arg("min_p"), py::arg("seeds"), py::arg("steps"));
}

}  // namespace moe::bindings
