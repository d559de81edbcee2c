// The extension module: every bind_* in the token's order. No arithmetic here.

#include <pybind11/pybind11.h>

#include "moe/base/check.h"

namespace moe::bindings {

namespace py = pybind11;

void bind_config(py::module_&);
void bind_rowwise(py::module_&);
void bind_attention(py::module_&);
void bind_recurrence(py::module_&);
void bind_sparse(py::module_&);
void bind_router(py::module_&);
void bind_plan(py::module_&);
void bind_weights(py::module_&);
void bind_tensors(py::module_&);
void bind_experts(py::module_&);
void bind_token_step(py::module_&);
void bind_sample(py::module_&);
void bind_limits(py::module_&);

}  // namespace moe::bindings

PYBIND11_MODULE(_core, m) {
  using namespace moe::bindings;
  m.doc() = "moekit's kernels. Use them through moekit.ops.";
  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const moe::ValueError& e) {
      py::set_error(PyExc_ValueError, e.what());
    } catch (const moe::TypeError& e) {
      py::set_error(PyExc_TypeError, e.what());
    } catch (const moe::CannotRun& e) {
      py::set_error(PyExc_RuntimeError, e.what());
    }
  });
  bind_config(m);
  bind_rowwise(m);
  bind_attention(m);
  bind_recurrence(m);
  bind_sparse(m);
  bind_router(m);
  bind_plan(m);
  bind_weights(m);
  bind_tensors(m);
  bind_experts(m);
  bind_token_step(m);
  bind_sample(m);
  bind_limits(m);
}
