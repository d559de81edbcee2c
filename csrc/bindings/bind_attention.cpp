#include <pybind11/stl.h>

#include <optional>

#include "array.h"
#include "heads.h"
#include "moe/ops/attention.h"
#include "moe/ops/kv_cache.h"

namespace moe::bindings {

namespace {

void check_length(const py::array& array, int64_t length, const char* op, const char* argument) {
  MOE_CHECK(array.shape(0) == length, "[", op, "] ", argument, " has shape ", shape_text(array),
            "; [", length, "] is required");
}

py::array_t<float> bound_attention(
    const char* op, const py::array& q, const std::optional<py::array>& q_tail, const py::array& k,
    const py::array& v, float scale, bool causal, int64_t first_position, int64_t window,
    int64_t chunk, float softcap, const std::optional<py::array>& sinks,
    const std::optional<py::array>& bias, const std::optional<py::array>& key_mask,
    const std::optional<py::array>& k_scales, const std::optional<py::array>& v_scales) {
  AttentionInputs in;
  in.queries = float_heads_of(q, op, "q");
  if (q_tail) {
    in.query_tails = float_heads_of(*q_tail, op, "q_rope");
    MOE_CHECK(
        in.query_tails.tokens == in.queries.tokens && in.query_tails.heads == in.queries.heads, "[",
        op, "] the queries' two parts have shapes ", shape_text(q), " and ", shape_text(*q_tail),
        "; the same tokens and heads are required");
  }
  in.keys = heads_of(k, op, "k", k_scales.has_value());
  in.values = heads_of(v, op, "v", v_scales.has_value());
  if (k_scales) add_scales(in.keys, *k_scales, op, "k");
  if (v_scales) add_scales(in.values, *v_scales, op, "v");
  in.scale = scale;
  in.causal = causal;
  in.first_position = first_position;
  in.window = window;
  in.chunk = chunk;
  in.softcap = softcap;
  if (sinks) {
    in.sinks = data_of<float>(*sinks, 1, op, "sinks");
    check_length(*sinks, in.queries.heads, op, "sinks");
  }
  if (key_mask) {
    in.key_mask = data_of<bool>(*key_mask, 1, op, "key_mask");
    check_length(*key_mask, in.keys.tokens, op, "key_mask");
  }
  if (bias) {
    const HeadsView rows = float_heads_of(*bias, op, "bias");  // here [heads, queries, keys]
    MOE_CHECK(rows.tokens == in.queries.heads && rows.heads == in.queries.tokens &&
                  rows.dim == in.keys.tokens,
              "[", op, "] bias has shape ", shape_text(*bias), "; [", in.queries.heads, ", ",
              in.queries.tokens, ", ", in.keys.tokens, "] is required");
    in.bias = static_cast<const float*>(rows.data);
    in.bias_head_stride = rows.token_stride;
    in.bias_query_stride = rows.head_stride;
  }
  auto out = new_array<float>({q.shape(0), q.shape(1), v.shape(2)});
  float* data = out.mutable_data();
  {
    py::gil_scoped_release release;
    attention(op, in, data);
  }
  return out;
}

void keep(const py::array& rows, py::array kept, std::optional<py::array> scales) {
  constexpr auto kOp = "keep_rows";
  const HeadsView from = float_heads_of(rows, kOp, "rows");
  const CacheRows to = cache_rows_of(kept, scales, kOp, "kept");
  const py::gil_scoped_release release;
  keep_rows(from, to);
}

}  // namespace

void bind_attention(py::module_& m) {
  m.def("attention", &bound_attention, py::arg("op"), py::arg("q"), py::arg("q_tail"), py::arg("k"),
        py::arg("v"), py::arg("scale"), py::arg("causal"), py::arg("first_position"),
        py::arg("window"), py::arg("chunk"), py::arg("softcap"), py::arg("sinks"), py::arg("bias"),
        py::arg("key_mask"), py::arg("k_scales") = py::none(), py::arg("v_scales") = py::none(),
        "Softmax attention; see moekit.ops.attention.");
  m.def("keep_rows", &keep, py::arg("rows"), py::arg("kept"), py::arg("scales"),
        "Rounds rows [T, heads, dim] into a cache's; int8 ones with scales [T, heads].");
}

}  // namespace moe::bindings
