"""What llama.cpp's loaders ask of a file beyond its keys, architecture by architecture.

Read from its src/models/*.cpp (as of llama-cpp-python 0.3.36): tensors that they require or have no
place for, and sizes that they take for granted. A file that they would not open is refused with
what stands against it.
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checkpoint.gguf_architectures import Architecture
from ..models.tensor_reader import Placed
from .placing import Tensor, value_of

if TYPE_CHECKING:
    from ..nn import Model

# `output.weight` is required, also where it is the table of embeddings.
_OWN_HEAD = frozenset(
    (
        *("qwen2moe", "olmoe", "gpt-oss", "dbrx", "dots1", "exaone-moe", "phimoe"),
        *("minimax-m2", "minimax-m3", "mimo2", "mellum", "kimi-linear", "deepseek4"),
    )
)
# No bias of q, k and v; elsewhere these three may have one.
_NO_BIASES = frozenset(
    ("deepseek2", "mistral4", "deepseek32", "glm-dsa", "deepseek4", "dbrx", "gemma4")
)
_MORE_BIASES: Mapping[str, tuple[str, ...]] = {
    "llama": ("attn_output", "ffn_gate", "ffn_up", "ffn_down"),
    "granitemoe": ("attn_output",),
    "granite_swa": ("attn_output",),
    "granitehybrid": ("attn_output", "ssm_conv1d", "ssm_dt"),
    "ernie4_5-moe": ("attn_output",),
    "gpt-oss": ("attn_output", "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"),
    "phimoe": ("attn_output", "attn_norm", "ffn_norm", "output", "output_norm"),
    "jamba": ("ssm_conv1d", "ssm_dt"),
    "nemotron_h_moe": ("attn_output", "ssm_conv1d", "ssm_dt", "ffn_up", "ffn_down"),
    "deepseek32": ("indexer.k_norm",),
    "glm-dsa": ("indexer.k_norm",),
}
_NEEDS_SHARED = frozenset(
    (
        *("qwen2moe", "deepseek", "deepseek2", "deepseek32", "glm-dsa", "mistral4", "dots1"),
        *("exaone-moe", "laguna", "hunyuan-moe", "llama4", "qwen3next", "qwen35moe", "glm4moe"),
    )
)
_AS_MANY_KEYS = ("olmoe", "dots1")
# Who reads factors of frequencies: Llama 3's scaling, and LongRoPE.
_ROTARY: Mapping[str, tuple[str, ...]] = {
    "rope_freqs.weight": (
        *("llama", "llama4", "granitemoe", "granite_swa", "granitehybrid", "exaone-moe"),
        "gemma4",
    ),
    "rope_factors_long.weight": ("llama", "granitemoe", "granite_swa", "phimoe"),
}
# Which numbers of layers mean a model that does not compress its queries (V2-Lite, Moonlight).
_WITHOUT_QUERY_RANK: Mapping[str, tuple[int, ...]] = {"deepseek2": (26, 27), "mistral4": ()}
_NEEDS_WINDOW = ("cohere2moe", "gemma4", "granite_swa")


def with_head(row: Architecture, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, and a head of its own where the loader wants one: the table once more."""
    head, table = (f"{row.frame[name]}.weight" for name in ("output", "token_embd"))
    if row.name not in _OWN_HEAD or head in tensors:
        return tensors
    values = value_of(tensors[table].parts[0][1])
    piece = tensors[table].parts[0][0]
    return {**tensors, head: Tensor(values.shape, [(piece, Placed(piece, values))])}


def require_opened(
    row: Architecture, model: "Model", names: Collection[str], keys: Mapping[str, Any]
) -> None:
    """ValueError naming what llama.cpp would not open; `names` are GGUF's, `keys` without the
    architecture."""

    def refuse(what: str, wanted: str) -> ValueError:
        return ValueError(
            f"[save] {what}; llama.cpp's {row.name} means {wanted}, which is required"
        )

    usual = () if row.name in _NO_BIASES else ("attn_q", "attn_k", "attn_v")
    allowed = {*usual, *_MORE_BIASES.get(row.name, ())}
    known = {name for name in row.names if name.endswith(".bias")}
    for name in names:
        inner = name.split(".", 2)[-1] if name.startswith("blk.") else name
        stem, _, kind = inner.rpartition(".")
        if kind == "bias" and stem not in allowed and inner not in known:
            raise refuse(f"{name} is there", "no such bias")
    if row.name in _NEEDS_SHARED:
        for n in model.moe_layers:
            moe = model.layers[n].moe
            if moe is not None and moe.shared is None:
                raise refuse("there is no shared expert", "one")
    heads, shared = keys["attention.head_count"], keys["attention.head_count_kv"]
    if row.name in _AS_MANY_KEYS and heads != shared:
        raise refuse(f"num_key_value_heads is {shared}", f"as many as heads, {heads}")
    if row.name in _NEEDS_WINDOW and not any(keys["attention.sliding_window_pattern"]):
        raise refuse("no layer has a window", "one at least")
    if row.name == "ernie4_5-moe" and keys.get("interleave_moe_layer_step", 1) != 1:
        step = keys["interleave_moe_layer_step"]
        raise refuse(f"moe_layer_interval is {step}", "1")
    if row.name == "jamba" and keys["ssm.inner_size"] != 2 * keys["embedding_length"]:
        raise refuse(f"mamba_expand is {model.config.get('mamba_expand')}", "2")
    depths, depth = _WITHOUT_QUERY_RANK.get(row.name), keys["block_count"]
    if depths is not None and not keys.get("attention.q_lora_rank") and depth not in depths:
        raise refuse("q_lora_rank is null", f"one in models of {depth} layers")
    if row.name == "olmoe" and "attention.clamp_kqv" in keys:
        raise refuse(f"clip_qkv is {keys['attention.clamp_kqv']:g}", "none")
    if row.name in ("qwen3next", "qwen35moe"):
        width, heads = keys["ssm.state_size"], keys["ssm.time_step_rank"]
        if keys["ssm.inner_size"] != width * heads:
            raise refuse(f"linear_value_head_dim is {keys['ssm.inner_size'] // heads}", str(width))
    if (row.mixer or row.kinds) and isinstance(shared, np.ndarray) and len({*(shared > 0)}) < 2:
        raise refuse("all layers are of one kind", "layers of attention and others")
    if row.name == "deepseek4" and keys["hyper_connection.count"] != 4:
        raise refuse(f"hc_mult is {keys['hyper_connection.count']}", "4")
    if row.name == "deepseek4" and not any(keys["attention.compress_ratios"]):
        raise refuse("every layer has a window alone", "compressed entries in one at least")
    for table, readers in _ROTARY.items():
        if table in names and row.name not in readers:
            raise refuse(f"rope_type asks for {table}", "none")
    rotary = keys.get("rope.dimension_count", 0)
    if isinstance(rotary, int) and rotary % 2:
        raise refuse(f"{rotary} dimensions rotate", "an even number")
