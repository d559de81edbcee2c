"""Which layer is of which kind: attention kinds and dense or sparse feed-forward, layer by layer.

A rule takes the checked fields and the number of layers and returns a kind for each; a list in
the configuration always wins over the rule that would have made it.
"""

from __future__ import annotations

from collections.abc import Callable

from .fields import MAX_LAYERS, Fields

Rule = Callable[[Fields, int], list[str]]

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
LINEAR = "linear_attention"
DENSE, SPARSE = "dense", "sparse"
_ATTENTION_KINDS = (FULL, SLIDING, CHUNKED, LINEAR, "indexed_attention")


def listed(name: str, allowed: tuple[str, ...], rule: Rule) -> Rule:
    """The list `name` if the configuration has it, else `rule`."""

    def choose(f: Fields, n: int) -> list[str]:
        return f.choices(name, n, allowed) or rule(f, n)

    return choose


def always(kind: str) -> Rule:
    return lambda f, n: [kind] * n


def every(field: str, default: int, on: str, off: str, *, first: str | None = None) -> Rule:
    """`on` for layers period-1, 2*period-1, …; `off` for the others (and `first` for layer 0)."""

    def choose(f: Fields, n: int) -> list[str]:
        period = f.size(field, default, high=MAX_LAYERS)
        kinds = [on if (i + 1) % period == 0 else off for i in range(n)]
        return [first, *kinds[1:]] if first and n else kinds

    return choose


def layer_types(rule: Rule, extra: tuple[str, ...] = ()) -> Rule:
    return listed("layer_types", _ATTENTION_KINDS + extra, rule)


def first_dense(field: str = "first_k_dense_replace", default: int = 0) -> Rule:
    """Dense feed-forward in the first layers, experts in the rest."""

    def choose(f: Fields, n: int) -> list[str]:
        dense = min(f.size(field, default, null=0, low=0, high=MAX_LAYERS), n)
        return [DENSE] * dense + [SPARSE] * (n - dense)

    return choose


def mlp_types(rule: Rule, extra: tuple[str, ...] = ()) -> Rule:
    return listed("mlp_layer_types", (DENSE, SPARSE, *extra), rule)


def qwen_step(f: Fields, n: int) -> list[str]:
    """Every `decoder_sparse_step`-th layer, except those in `mlp_only_layers`."""
    step = f.size("decoder_sparse_step", 1, high=MAX_LAYERS)
    dense = set(f.integers("mlp_only_layers", low=0, high=MAX_LAYERS) or ())
    return [DENSE if i in dense or (i + 1) % step else SPARSE for i in range(n)]


def qwen_window(f: Fields, n: int) -> list[str]:
    """Qwen3-MoE: one window for all layers, and only when it is switched on."""
    on = f.config.get("use_sliding_window") is True and f.has("sliding_window")
    return [SLIDING if on else FULL] * n


def qwen2_window(f: Fields, n: int) -> list[str]:
    on = f.config.get("use_sliding_window") is True
    limit = f.size("max_window_layers", 28, null=28, low=0, high=MAX_LAYERS)
    return [SLIDING if on and i < limit and (i + 1) % 2 else FULL for i in range(n)]


def plain_window(f: Fields, n: int) -> list[str]:
    """Mixtral, Phi: a window on every layer when the field is set."""
    return [SLIDING if f.has("sliding_window") else FULL] * n


def default_window(f: Fields, n: int) -> list[str]:
    """Mistral: a window on every layer unless the field is null."""
    return [SLIDING if "sliding_window" not in f.config or f.has("sliding_window") else FULL] * n


def late_window(f: Fields, n: int) -> list[str]:
    """dots.llm1: a window from layer `max_window_layers` on."""
    on = "sliding_window" not in f.config or f.has("sliding_window")
    limit = f.size("max_window_layers", 62, null=62, low=0, high=MAX_LAYERS)
    return [SLIDING if on and i >= limit else FULL for i in range(n)]


def llama4_attention(f: Fields, n: int) -> list[str]:
    """Chunked attention with RoPE; every fourth layer sees everything and has none."""
    rope = f.integers("no_rope_layers", low=0, high=1)
    if not rope:
        step = f.size("no_rope_layer_interval", 4, high=MAX_LAYERS)
        rope = [int((i + 1) % step != 0) for i in range(n)]
    if len(rope) < n:
        raise f.error("no_rope_layers", f"an entry for each of {n} layers is required")
    return [CHUNKED if rope[i] else FULL for i in range(n)]


def llama4_sparse(f: Fields, n: int) -> list[str]:
    given = f.integers("moe_layers", low=0, high=MAX_LAYERS)
    step = f.size("interleave_moe_layer_step", 1, high=MAX_LAYERS)
    sparse = set(range(step - 1, n, step) if given is None else given)
    return [SPARSE if i in sparse else DENSE for i in range(n)]


def ernie_sparse(f: Fields, n: int) -> list[str]:
    start = f.size("moe_layer_start_index", 1, low=0, high=MAX_LAYERS)
    end = f.size("moe_layer_end_index", 27, null=-1, low=-1, high=MAX_LAYERS)
    step = f.size("moe_layer_interval", 1, high=MAX_LAYERS)
    end = n - 1 if end == -1 else end
    return [SPARSE if (i + 1) % step == 0 and start <= i <= end else DENSE for i in range(n)]


def jamba_attention(f: Fields, n: int) -> list[str]:
    period, offset = _period(f, "attn_layer", 8, 4)
    return [FULL if i % period == offset else LINEAR for i in range(n)]


def jamba_sparse(f: Fields, n: int) -> list[str]:
    period, offset = _period(f, "expert_layer", 2, 1)
    some = f.experts("num_experts", 16) > 1
    return [SPARSE if some and i % period == offset else DENSE for i in range(n)]


def _period(f: Fields, prefix: str, period_default: int, offset_default: int) -> tuple[int, int]:
    period = f.size(prefix + "_period", period_default, high=MAX_LAYERS)
    offset = f.size(prefix + "_offset", offset_default, low=0, high=MAX_LAYERS)
    if offset >= period:
        raise f.error(prefix + "_offset", f"it must be smaller than the period, {period}")
    return period, offset


def exaone_attention(f: Fields, n: int) -> list[str]:
    if "sliding_window" in f.config and not f.has("sliding_window"):
        return [FULL] * n
    return every("sliding_window_pattern", 4, FULL, SLIDING)(f, n)


def mimo_attention(f: Fields, n: int) -> list[str]:
    return [FULL if i == 0 or (i + 1) % 6 == 0 else SLIDING for i in range(n)]


def swa_attention(f: Fields, n: int) -> list[str]:
    return [FULL if i % 4 == 0 else SLIDING for i in range(n)]


def kimi_attention(f: Fields, n: int) -> list[str]:
    """Kimi Linear: layer numbers in the checkpoint's own section count from one."""
    if not f.config.get("linear_attn_config"):
        return [FULL if i and i % 4 == 0 else LINEAR for i in range(n)]
    nested = f.section("linear_attn_config")
    full = nested.integers("full_attn_layers", low=1, high=MAX_LAYERS)
    if full is None:
        return [FULL if i and i % 4 == 0 else LINEAR for i in range(n)]
    return [FULL if i + 1 in set(full) else LINEAR for i in range(n)]


def cohere_attention(f: Fields, n: int) -> list[str]:
    dense = min(f.size("first_k_dense_replace", 0, null=0, low=0, high=MAX_LAYERS), n)
    head = every("prefix_dense_sliding_window_pattern", 1, FULL, SLIDING)(f, dense)
    return head + every("sliding_window_pattern", 4, FULL, SLIDING)(f, n - dense)


_V4_KINDS = {0: SLIDING, 4: "compressed_sparse_attention", 128: "heavily_compressed_attention"}


def v4_attention(f: Fields, n: int) -> list[str]:
    """DeepSeek-V4: explicit kinds, else compression ratios, else two heavy and an alternation."""
    ratios = f.integers("compress_ratios", low=0, high=128)
    sparse, heavy = _V4_KINDS[4], _V4_KINDS[128]
    if ratios is None:
        return ([heavy] * 2 + [sparse if i % 2 else heavy for i in range(n - 2)])[:n]
    if len(ratios) < n or any(r not in _V4_KINDS for r in ratios):
        raise f.error("compress_ratios", f"0, 4 or 128 for each of {n} layers is required")
    return [_V4_KINDS[r] for r in ratios[:n]]


def v4_sparse(f: Fields, n: int) -> list[str]:
    count = min(f.size("num_hash_layers", 3, null=3, low=0, high=MAX_LAYERS), n)
    return ["hash_moe"] * count + ["moe"] * (n - count)


def dsa_attention(f: Fields, n: int) -> list[str]:
    """GLM-5: layers that run an indexer, and layers that reuse the previous one's choice."""
    given = f.choices("indexer_types", n, ("full", "shared"))
    pattern = f.config.get("index_topk_pattern")
    if given is None and isinstance(pattern, str):
        if len(pattern) < n or set(pattern) - set("FS"):
            raise f.error("index_topk_pattern", f"F or S for each of {n} layers is required")
        given = [{"F": "full", "S": "shared"}[c] for c in pattern[:n]]
    if given is None:
        freq = max(f.size("index_topk_freq", 1, null=1, low=0, high=MAX_LAYERS), 1)
        offset = f.size("index_skip_topk_offset", 2, null=2, low=0, high=MAX_LAYERS)
        given = ["shared" if max(i - offset + 1, 0) % freq else "full" for i in range(n)]
    return [FULL if kind == "full" else "shared_index" for kind in given]


def m3_attention(f: Fields, n: int) -> list[str]:
    sparse = f.config.get("sparse_attention_config")
    flags = (
        Fields(sparse, f.model_type).integers("sparse_attention_freq", low=0, high=1)
        if isinstance(sparse, dict)
        else None
    )
    if flags is None:
        return [FULL] * n
    return ["minimax_m3_sparse" if flag else FULL for flag in flags[:n]]


def m3_sparse(f: Fields, n: int) -> list[str]:
    flags = f.integers("moe_layer_freq", low=0, high=1)
    if flags is None:
        return [SPARSE] * n
    return [SPARSE if flag else DENSE for flag in flags[:n]]


_NEMOTRON = {"M": LINEAR, "E": "moe", "*": FULL, "-": "mlp"}


def nemotron_blocks(f: Fields, n: int) -> list[str]:
    """Nemotron-H: one mixer a layer, written as a pattern of M, E, * and -."""
    names = ("layers_block_type", "layer_types")
    pattern = f.config.get("hybrid_override_pattern")
    if isinstance(pattern, str) and not any(f.has(name) for name in names):
        if set(pattern) - set(_NEMOTRON) or len(pattern) < n:
            raise f.error(
                "hybrid_override_pattern", "a character of M, E, *, - for each layer is required"
            )
        return [_NEMOTRON[c] for c in pattern[:n]]
    aliases = {"mamba": LINEAR, "attention": FULL}
    allowed = (LINEAR, FULL, "moe", "mlp", *aliases)
    kinds = f.choices(names, n, allowed)
    if kinds is None:
        raise f.error("layers_block_type", "a kind for each layer is required")
    return [aliases.get(kind, kind) for kind in kinds]
