// Another library's tensors, watched.

#include "bindings/dlpack.h"
#include "moe/base/fingerprint.h"

namespace moe::bindings {

namespace {

Fingerprint fingerprint_of(const py::object& capsule, int64_t pieces) {
  const SharedTensor tensor(capsule, "Fingerprint", "tensor");
  const int64_t bytes = tensor.item_bytes();
  MOE_CHECK(bytes >= 1 && bytes <= 8, "[Fingerprint] tensor has elements of ", bytes,
            " bytes; 1 to 8 are required");
  MOE_CHECK(pieces >= 1, "[Fingerprint] pieces is ", pieces, "; 1 or more are required");
  return Fingerprint(tensor.count(), bytes, pieces, [&](int64_t index) -> const void* {
    int64_t offset = 0, width = 1;
    for (int d = tensor.ndim(); d-- > 0;) {
      const int64_t place = index % tensor.shape(d);
      index /= tensor.shape(d);
      offset += place * (tensor.has_strides() ? tensor.stride(d) : width);
      width *= tensor.shape(d);
    }
    return tensor.data() + offset * bytes;
  });
}

}  // namespace

void bind_tensors(py::module_& m) {
  py::class_<Fingerprint>(
      m, "Fingerprint",
      "A number of each of some equal pieces of a tensor (a DLPack capsule), to notice writes. "
      "It keeps the address alone: whoever asks knows that the memory lives.")
      .def(py::init(&fingerprint_of), py::arg("capsule"), py::arg("pieces"))
      .def("same", &Fingerprint::same);
}

}  // namespace moe::bindings
