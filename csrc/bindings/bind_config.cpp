#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "moe/base/cpu.h"
#include "moe/base/parallel.h"
#include "moe/kernels/table.h"

namespace moe::bindings {

namespace py = pybind11;

namespace {

// A with statement around a ThreadLimit.
struct LimitedThreads {
  int most;
  std::optional<ThreadLimit> limit;
};

}  // namespace

void bind_config(py::module_& m) {
  m.def("isa", [] { return std::string(kernels().name); }, "The instruction set in use.");
  m.def("set_isa", [](const std::string& name) { set_isa(name.c_str()); }, py::arg("name"));
  m.def(
      "runnable_isas",
      [] {
        int count = 0;
        const KernelTable* const* tables = all_kernels(&count);
        std::vector<std::string> names;
        for (int i = 0; i < count; ++i) {
          if (can_run(*tables[i])) names.emplace_back(tables[i]->name);
        }
        return names;
      },
      "Instruction sets of this build that this machine runs, worst first.");
  m.def("cpu_name", &cpu_name);
  m.def("compiler", [] { return std::string(__VERSION__); }, "The compiler that built the core.");
  m.def("num_threads", &num_threads);
  m.def("set_num_threads", &set_num_threads, py::arg("threads"));
  py::class_<LimitedThreads>(m, "ThreadLimit", "Inside, this thread's calls use at most so many.")
      .def(py::init([](int most) { return std::make_unique<LimitedThreads>(most); }),
           py::arg("most"))
      .def("__enter__", [](LimitedThreads& self) { self.limit.emplace(self.most); })
      .def("__exit__", [](LimitedThreads& self, const py::object&, const py::object&,
                          const py::object&) { self.limit.reset(); });
}

}  // namespace moe::bindings
