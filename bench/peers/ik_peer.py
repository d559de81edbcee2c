"""ik_llama.cpp's kernels: its fused gate, up and SiLU, and its weighted sum of the experts.

`ik` keeps the weights as a file has them; `ik repack` lays them out anew, as its option `-rtr` does
while loading. The wheel of PyPI is compiled for AVX2: a build with `-march=native` is faster.
"""

from __future__ import annotations

from .ggml_library import TYPES, find_ik
from .ggml_peer import GgmlPeer
from .layer import Peer

_SILU = 10  # enum ggml_unary_op
# iqk_quantize.cpp, get_repack_info; f16 would become bf16 there, which is another format.
_REPACKED = {"bf16", "q4_0", "q5_0", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl"}
_REPACKED |= {"iq4_xs", "mxfp4", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s"}


class IkPeer(GgmlPeer):
    def graph(
        self, context: int, rows: int, ids: int, scales: int, sizes: tuple[int, int, int]
    ) -> int:
        assert self._weights is not None
        ggml, (gate, up, down) = self._ggml, self._weights
        activated = ggml.ggml_moe_up_gate(context, up, gate, rows, ids, _SILU)
        y = ggml.ggml_mul_mat_id(context, down, activated, ids)
        return ggml.ggml_mul_multi_add(context, y, scales)


class IkRepacked(IkPeer):
    def lay_out(self, tensor: int) -> None:
        self._ggml.iqk_repack_tensor(tensor)


def load(threads: int) -> list[Peer]:
    ggml = find_ik()
    plain = ggml.ggml_backend_cpu_buffer_type()
    return [
        IkPeer("ik", ggml, threads, TYPES, plain),
        IkRepacked("ik repack", ggml, threads, _REPACKED, plain),
    ]
