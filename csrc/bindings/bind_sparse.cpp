// DeepSeek's sparse and compressed attention, and its residual streams.

#include <pybind11/stl.h>

#include <optional>
#include <tuple>
#include <vector>

#include "array.h"
#include "heads.h"
#include "moe/ops/hyper_connection.h"
#include "moe/ops/pool_windows.h"
#include "moe/ops/select_keys.h"
#include "moe/ops/sparse_attention.h"

namespace moe::bindings {

namespace {

using Triple = std::tuple<py::array_t<float>, py::array_t<float>, py::array_t<float>>;

py::array_t<int32_t> bound_select_keys(const py::array& queries, const py::array& weights,
                                       const py::array& keys, const py::array& visible, int64_t k) {
  const char* op = "select_keys";
  SelectKeysInputs in;
  in.queries = float_heads_of(queries, op, "queries");
  in.keys = heads_of(keys, op, "keys");
  in.weights = data_of<float>(weights, 2, op, "weights");
  in.visible = data_of<int64_t>(visible, 1, op, "visible");
  in.k = k;
  MOE_CHECK(weights.shape(0) == in.queries.tokens && weights.shape(1) == in.queries.heads, "[", op,
            "] weights has shape ", shape_text(weights), "; [", in.queries.tokens, ", ",
            in.queries.heads, "] is required");
  MOE_CHECK(visible.shape(0) == in.queries.tokens, "[", op, "] visible has shape ",
            shape_text(visible), "; [", in.queries.tokens, "] is required");
  MOE_CHECK(k > 0, "[", op, "] k is ", k, "; at least 1 is required");
  auto out = new_array<int32_t>({queries.shape(0), static_cast<py::ssize_t>(k)});
  int32_t* data = out.mutable_data();
  {
    const py::gil_scoped_release release;
    select_keys(in, data);
  }
  return out;
}

py::array_t<float> bound_sparse_attention(const char* op, const py::array& q,
                                          const std::optional<py::array>& q_tail,
                                          const std::vector<py::array>& sources, int64_t value_dim,
                                          const py::array& selected, float scale,
                                          const std::optional<py::array>& sinks) {
  SparseAttentionInputs in;
  in.queries = float_heads_of(q, op, "q");
  if (q_tail) {
    in.query_tails = float_heads_of(*q_tail, op, "q_rope");
    MOE_CHECK(
        in.query_tails.tokens == in.queries.tokens && in.query_tails.heads == in.queries.heads, "[",
        op, "] the queries' two parts have shapes ", shape_text(q), " and ", shape_text(*q_tail),
        "; the same tokens and heads are required");
  }
  std::vector<HeadsView> views;
  for (const py::array& source : sources) views.push_back(heads_of(source, op, "rows"));
  in.sources = views.data();
  in.source_count = static_cast<int64_t>(views.size());
  in.value_dim = value_dim;
  in.selected = data_of<int32_t>(selected, 2, op, "selected");
  in.width = selected.shape(1);
  in.scale = scale;
  MOE_CHECK(selected.shape(0) == in.queries.tokens, "[", op, "] selected has shape ",
            shape_text(selected), "; a row for each of ", in.queries.tokens,
            " queries is required");
  if (sinks) {
    in.sinks = data_of<float>(*sinks, 1, op, "sinks");
    MOE_CHECK(sinks->shape(0) == in.queries.heads, "[", op, "] sinks has shape ",
              shape_text(*sinks), "; [", in.queries.heads, "] is required");
  }
  auto out = new_array<float>({q.shape(0), q.shape(1), static_cast<py::ssize_t>(value_dim)});
  float* data = out.mutable_data();
  {
    const py::gil_scoped_release release;
    sparse_attention(op, in, data);
  }
  return out;
}

py::array_t<float> bound_pool_windows(const py::array& values, const py::array& gates) {
  const char* op = "pool_windows";
  const float* value = data_of<float>(values, 3, op, "values");
  const float* gate = data_of<float>(gates, 3, op, "gates");
  for (int i = 0; i < 3; ++i) {
    MOE_CHECK(values.shape(i) == gates.shape(i), "[", op, "] gates has shape ", shape_text(gates),
              "; values ", shape_text(values));
  }
  const int64_t windows = values.shape(0), length = values.shape(1), dim = values.shape(2);
  auto out = new_array<float>({windows, dim});
  float* data = out.mutable_data();
  {
    const py::gil_scoped_release release;
    pool_windows(value, gate, windows, length, dim, data);
  }
  return out;
}

Triple bound_hyper_connection(const py::array& mixes, const py::array& base,
                              const py::array& scales, int64_t streams, int64_t iterations,
                              float eps) {
  const char* op = "hyper_connection";
  const auto rows = matrix_of<float>(mixes, op, "mixes");
  HyperConnectionInputs in;
  in.mixes = rows.data;
  in.base = data_of<float>(base, 1, op, "base");
  in.scales = data_of<float>(scales, 1, op, "scales");
  in.tokens = rows.rows;
  in.streams = streams;
  in.iterations = iterations;
  in.eps = eps;
  MOE_CHECK(streams >= 1 && streams <= kMaxStreams && rows.cols == (2 + streams) * streams, "[", op,
            "] mixes has shape ", shape_text(mixes),
            "; [T, (2 + n) n] is required for n = ", streams, " streams (at most ", kMaxStreams,
            ")");
  MOE_CHECK(base.shape(0) == rows.cols && scales.shape(0) == 3, "[", op, "] base and scales have ",
            base.shape(0), " and ", scales.shape(0), " numbers; ", rows.cols,
            " and 3 are required");
  auto read = new_array<float>({rows.rows, streams});
  auto write = new_array<float>({rows.rows, streams});
  auto mix = new_array<float>({rows.rows, streams, streams});
  float *r = read.mutable_data(), *w = write.mutable_data(), *m = mix.mutable_data();
  {
    const py::gil_scoped_release release;
    hyper_connection(in, r, w, m);
  }
  return {std::move(read), std::move(write), std::move(mix)};
}

py::array_t<float> bound_mix_streams(const py::array& streams, const py::array& weights,
                                     const std::optional<py::array>& added,
                                     const std::optional<py::array>& factors) {
  const char* op = "mix_streams";
  MixStreamsInputs in;
  in.streams = data_of<float>(streams, 3, op, "streams");
  in.weights = data_of<float>(weights, 3, op, "weights");
  in.tokens = streams.shape(0);
  in.streams_in = streams.shape(1);
  in.hidden = streams.shape(2);
  in.streams_out = weights.shape(2);
  MOE_CHECK(in.streams_in > 0 && weights.shape(0) == in.tokens && weights.shape(1) == in.streams_in,
            "[", op, "] weights has shape ", shape_text(weights), "; [", in.tokens, ", ",
            in.streams_in, ", m] is required");
  MOE_CHECK(added.has_value() == factors.has_value(), "[", op,
            "] one of added and factors was given; both or none are required");
  if (added) {
    const auto rows = matrix_of<float>(*added, op, "added");
    const auto by = matrix_of<float>(*factors, op, "factors");
    MOE_CHECK(rows.rows == in.tokens && rows.cols == in.hidden, "[", op, "] added has shape ",
              shape_text(*added), "; [", in.tokens, ", ", in.hidden, "] is required");
    MOE_CHECK(by.rows == in.tokens && by.cols == in.streams_out, "[", op, "] factors has shape ",
              shape_text(*factors), "; [", in.tokens, ", ", in.streams_out, "] is required");
    in.added = rows.data;
    in.factors = by.data;
  }
  auto out = new_array<float>({in.tokens, in.streams_out, in.hidden});
  float* data = out.mutable_data();
  {
    const py::gil_scoped_release release;
    mix_streams(in, data);
  }
  return out;
}

}  // namespace

void bind_sparse(py::module_& m) {
  m.def("select_keys", &bound_select_keys, py::arg("queries"), py::arg("weights"), py::arg("keys"),
        py::arg("visible"), py::arg("k"),
        "The best keys of each query; see moekit.ops.select_keys.");
  m.def("sparse_attention", &bound_sparse_attention, py::arg("op"), py::arg("q"), py::arg("q_tail"),
        py::arg("sources"), py::arg("value_dim"), py::arg("selected"), py::arg("scale"),
        py::arg("sinks"), "Attention over selected rows; see moekit.ops.sparse_attention.");
  m.def("pool_windows", &bound_pool_windows, py::arg("values"), py::arg("gates"),
        "Gated sums of windows; see moekit.ops.pool_windows.");
  m.def("hyper_connection", &bound_hyper_connection, py::arg("mixes"), py::arg("base"),
        py::arg("scales"), py::arg("streams"), py::arg("iterations"), py::arg("eps"),
        "How streams are read, written and mixed; see moekit.ops.hyper_connection.");
  m.def("mix_streams", &bound_mix_streams, py::arg("streams"), py::arg("weights"), py::arg("added"),
        py::arg("factors"), "Weighted sums of streams; see moekit.ops.mix_streams.");
}

}  // namespace moe::bindings
