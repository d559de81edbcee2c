#pragma once
// The feed-forward half of a mixture-of-experts layer, after routing:
// plan → gate·up·activate → down → combine (+ shared expert), in one parallel region.

#include <cstdint>

#include "moe/base/dtype.h"
#include "moe/base/tensor_view.h"
#include "moe/ops/compute.h"
#include "moe/weights/packed_weight.h"

namespace moe {

/// The experts of a layer: E × (gate [F, H], up [F, H], down [H, F]). Without `gate` an expert is
/// down · act(up · x). The biases [E, F], [E, F], [E, H] may be null.
struct ExpertBank {
  const PackedWeight* gate = nullptr;
  const PackedWeight* up = nullptr;
  const PackedWeight* down = nullptr;
  const float* gate_bias = nullptr;
  const float* up_bias = nullptr;
  const float* down_bias = nullptr;
  ActivationSpec activation;
};

/// Which experts each token goes to, and with which weight: [T, K], -1 is an empty slot.
struct AssignmentView {
  const int32_t* experts = nullptr;
  const float* weights = nullptr;
  int64_t tokens = 0;
  int k = 0;
  /// Llama 4: the weight multiplies the expert's input instead of its output.
  bool weighs_input = false;
};

/// An expert that every token goes to. `scale` [T] may be null (1).
struct SharedExpert {
  ExpertBank bank;
  const float* scale = nullptr;
};

/// out[t] = Σ_slot weight · expert(x[t])  +  scale[t] · shared(x[t]), added in this order; x and
/// out are [T, H]. Throws ValueError where sizes, formats or ids do not fit; nothing is computed
/// then.
void moe_ffn(MatrixView<const float> x, const AssignmentView& assignment, const ExpertBank& experts,
             const SharedExpert* shared, Compute compute, MatrixView<float> out);

/// A layer's input as another library holds it: activations [T, H] and weights [T, K] in any of the
/// float dtypes, expert ids in int64. An id of E is an empty slot.
struct PlainTokens {
  const void* x;
  DType dtype;
  int64_t tokens, hidden;
  const int64_t* experts;
  const void* weights;
  DType weights_dtype;
  int k;
  bool weighs_input;
};

/// moe_ffn of these, `out` [T, H] rounded to nearest in x's dtype. Throws ValueError for an id
/// below 0 or above E, and as moe_ffn does.
void moe_ffn_plain(const PlainTokens& in, const ExpertBank& experts, Compute compute, void* out);

}  // namespace moe
