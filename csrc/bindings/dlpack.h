#pragma once
// Memory of another library, read and written in place: the capsules of DLPack ("dltensor", the
// layout that every version up to 1.x keeps: https://dmlc.github.io/dlpack/latest/c_api.html).
// Asking torch for a capsule takes a sixth of the time that its NumPy array takes.

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "moe/base/check.h"

namespace moe::bindings {

namespace py = pybind11;

struct DlDevice {
  int32_t type;
  int32_t id;
};

struct DlType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct DlTensor {
  void* data;
  DlDevice device;
  int32_t ndim;
  DlType dtype;
  const int64_t* shape;
  const int64_t* strides;  // in elements; null: C-contiguous
  uint64_t byte_offset;
};

inline constexpr int32_t kDlCpu = 1;
inline constexpr uint8_t kDlInt = 0, kDlFloat = 2, kDlBfloat = 4;

/// The tensor of a capsule. It belongs to the capsule, which the caller keeps.
class SharedTensor {
 public:
  SharedTensor(const py::object& capsule, const char* op, const char* argument)
      : op_(op), argument_(argument) {
    const void* found = PyCapsule_IsValid(capsule.ptr(), "dltensor") != 0
                            ? PyCapsule_GetPointer(capsule.ptr(), "dltensor")
                            : nullptr;
    if (found == nullptr) fail("is no DLPack capsule");
    tensor_ = static_cast<const DlTensor*>(found);
    if (tensor_->device.type != kDlCpu) fail("is not in the memory of the CPU");
    count_ = 1;
    for (int i = 0; i < tensor_->ndim; ++i) count_ *= tensor_->shape[i];
    // What stands for a tensor while a program is traced has no memory.
    if (tensor_->data == nullptr && count_ > 0) fail("has no memory");
  }

  int ndim() const { return tensor_->ndim; }
  int64_t shape(int i) const { return tensor_->shape[i]; }
  int64_t stride(int i) const { return tensor_->strides[i]; }
  bool has_strides() const { return tensor_->strides != nullptr; }
  int64_t count() const { return count_; }
  int64_t item_bytes() const { return tensor_->dtype.bits * tensor_->dtype.lanes / 8; }
  std::byte* data() const { return static_cast<std::byte*>(tensor_->data) + tensor_->byte_offset; }

  bool is(uint8_t code, int bits) const {
    return tensor_->dtype.code == code && tensor_->dtype.bits == bits && tensor_->dtype.lanes == 1;
  }

  bool contiguous() const {
    if (!has_strides() || count_ == 0) return true;
    int64_t expected = 1;
    for (int i = ndim(); i-- > 0;) {
      if (shape(i) != 1 && stride(i) != expected) return false;
      expected *= shape(i);
    }
    return true;
  }

  /// Throws TypeError with what the argument is not.
  [[noreturn]] void fail(const char* what) const {
    throw TypeError(message("[", op_, "] ", argument_, " ", what));
  }

  std::string shape_text() const {
    std::string text = "[";
    for (int i = 0; i < ndim(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape(i));
    return text + "]";
  }

 private:
  const DlTensor* tensor_ = nullptr;
  int64_t count_ = 0;
  const char* op_;
  const char* argument_;
};

}  // namespace moe::bindings
