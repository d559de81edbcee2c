// What the machine can do at best.

#include <pybind11/pybind11.h>

#include <memory>
#include <string>

#include "moe/base/check.h"
#include "moe/base/cpu.h"
#include "moe/ops/compute.h"
#include "moe/ops/limits.h"

namespace moe::bindings {

namespace py = pybind11;

namespace {

constexpr const char* kDotNames[] = {"f32", "bf16", "u8s8", "bf16x2"};
static_assert(sizeof(kDotNames) / sizeof(kDotNames[0]) == kDotKinds);

Dot parse_dot(const std::string& name) {
  for (int d = 0; d < kDotKinds; ++d) {
    if (name == kDotNames[d]) return static_cast<Dot>(d);
  }
  throw ValueError(message("[limits] dot product '", name, "'; known: f32, bf16, u8s8, bf16x2"));
}

Clock parse_clock(const std::string& name) {
  if (name == "wall") return Clock::kWall;
  if (name == "cpu") return Clock::kProcessor;
  throw ValueError(message("[limits] clock '", name, "'; 'wall' or 'cpu' is required"));
}

}  // namespace

void bind_limits(py::module_& m) {
  py::class_<LimitProbe>(m, "LimitProbe")
      .def(py::init([](int64_t bytes, const std::string& clock) {
             return std::make_unique<LimitProbe>(bytes, parse_clock(clock));
           }),
           py::arg("bytes"), py::arg("clock"), py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("bytes", &LimitProbe::bytes)
      .def("read_bandwidth", &LimitProbe::read_bandwidth, py::call_guard<py::gil_scoped_release>())
      .def(
          "multiply_peak",
          [](LimitProbe& probe, const std::string& dot) {
            const Dot kind = parse_dot(dot);
            const py::gil_scoped_release release;
            return probe.multiply_peak(kind);
          },
          py::arg("dot"));
  py::class_<Measured>(m, "Measured")
      .def_readonly("median", &Measured::median)
      .def_readonly("best", &Measured::best);
  py::class_<Limits>(m, "Limits")
      .def_readonly("threads", &Limits::threads)
      .def_readonly("read_bandwidth", &Limits::read_bandwidth)
      .def(
          "multiply_peak",
          [](const Limits& limits, const std::string& dot) {
            return limits.multiply_peak[static_cast<size_t>(parse_dot(dot))];
          },
          py::arg("dot"));
  m.def(
      "measure_limits",
      [](int64_t bytes, int passes, const std::string& clock) {
        return measure_limits(bytes, passes, parse_clock(clock));
      },
      py::arg("bytes"), py::arg("passes"), py::arg("clock"),
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "clock_seconds", [](const std::string& clock) { return clock_seconds(parse_clock(clock)); },
      py::arg("clock"));
  m.def("last_level_cache_bytes", &last_level_cache_bytes);
  m.def(
      "dot_of",
      [](const std::string& format, int64_t rows, int64_t cols, const std::string& compute) {
        const Dot dot = choose_dot(parse_format(format), parse_compute(compute), rows, cols);
        return kDotNames[static_cast<int>(dot)];
      },
      py::arg("format"), py::arg("rows"), py::arg("cols"), py::arg("compute"),
      "The dot product that a matrix of this format is multiplied with.");
}

}  // namespace moe::bindings
