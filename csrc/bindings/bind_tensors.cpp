// Another library's tensors, watched.

#include <algorithm>

#include "bindings/dlpack.h"
#include "moe/base/fingerprint.h"

namespace moe::bindings {

namespace {

// One for each expert, where they are stacked.
constexpr int64_t kFewestPieces = 16, kMostPieces = 1024;

Fingerprint fingerprint_of(const py::object& capsule) {
  const SharedTensor tensor(capsule, "Fingerprint", "tensor");
  const int64_t bytes = tensor.item_bytes();
  MOE_CHECK(bytes >= 1 && bytes <= 8, "[Fingerprint] tensor has elements of ", bytes,
            " bytes; 1 to 8 are required");
  const int64_t first = tensor.ndim() > 0 ? tensor.shape(0) : 1;
  const int64_t pieces = std::clamp(first, kFewestPieces, kMostPieces);
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
      "A number of each slice of a tensor (a DLPack capsule), to notice writes. "
      "It keeps the address alone: whoever asks knows that the memory lives.")
      .def(py::init(&fingerprint_of), py::arg("capsule"))
      .def("same", &Fingerprint::same);
}

}  // namespace moe::bindings
