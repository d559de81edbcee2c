"""DeepSeek-V4 Flash and Pro (2026): compressed attention, hash layers, several residual streams.

Router: sqrt(softplus) of the logits, a bias that enters the selection alone, weights renormalised
times `routed_scaling_factor`; in the first layers a table says which experts serve a token id.
Every expert's gate and up are clamped. Published files name their tensors without `model.`;
`save_pretrained` of transformers writes a mixture of both spellings.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..config import Config
from ..nn import (
    CompressedAttention,
    Compressor,
    EntrySelector,
    HashRouter,
    HyperBlock,
    HyperConnection,
    HyperHead,
    Linear,
    Model,
    MoE,
    Norm,
    Router,
)
from ..ops import PackedWeight
from .base import (
    MAX_HEAD_DIM,
    Names,
    assemble,
    layer_count,
    read_activation,
    rope_table,
    top_k,
)
from .reader import Reader
from .rope import RopeSettings, read_rope

SLIDING, CSA, HCA = (
    "sliding_attention",
    "compressed_sparse_attention",
    "heavily_compressed_attention",
)
_BY_RATIO = {0: SLIDING, 4: CSA, 128: HCA}
_EXPERT_PARTS = ("w1", "w3", "w2")
_MAX_STREAMS = 64


def build(config: Config, reader: Reader) -> Model:
    """The model of a DeepSeek-V4 checkpoint."""
    hidden = config.size("hidden_size")
    eps = config.number("rms_norm_eps", default=1e-6, above=0)
    streams = config.size("hc_mult", default=4, most=_MAX_STREAMS)
    iterations = config.size("hc_sinkhorn_iters", default=20, most=1000)
    hyper_eps = config.number("hc_eps", default=1e-6, above=0)
    reader.activation = read_activation(config)
    attention, mixture = _attention(config, hidden, eps), _mixture(config, hidden)

    def connection(layer: Reader, name: str) -> HyperConnection:
        rows = (2 + streams) * streams
        mixes = layer.packed(f"{name}_fn", rows, streams * hidden, "f32")
        return HyperConnection(
            Linear(mixes, kind="norm"),
            layer.tensor(f"{name}_base", rows),
            layer.tensor(f"{name}_scale", 3),
            streams,
            iterations=iterations,
            eps=hyper_eps,
            norm_eps=eps,
        )

    def block(n: int, layer: Reader) -> HyperBlock:
        return HyperBlock(
            connection(layer, "hc_attn"),
            layer.norm("attn_norm", hidden, eps),
            attention(n, layer.under("attn")),
            connection(layer, "hc_ffn"),
            layer.norm("ffn_norm", hidden, eps),
            mixture(n, layer.under("ffn")),
        )

    def last_norm(whole: Reader, name: str) -> Norm:
        prefix = whole.first_of("hc_head_fn", "model.hc_head.hc_fn").removesuffix("fn")
        mixes = whole.packed(f"{prefix}fn", streams, streams * hidden, "f32")
        return HyperHead(
            Linear(mixes, kind="norm"),
            whole.tensor(f"{prefix}base", streams),
            whole.tensor(f"{prefix}scale", 1),
            whole.norm(name, hidden, eps),
            eps=hyper_eps,
            norm_eps=eps,
        )

    published = "embed.weight" in reader
    names = Names(
        "embed" if published else "model.embed_tokens",
        "layers" if published else "model.layers",
        "norm" if published else "model.norm",
        "head",
    )
    # The layers for multi-token prediction stand apart.
    return assemble(
        config, reader, hidden, eps, block, norm=last_norm, names=names, ignored=("mtp.",)
    )


def _attention(
    config: Config, hidden: int, eps: float
) -> Callable[[int, Reader], CompressedAttention]:
    heads = config.size("num_attention_heads")
    dim = config.size("head_dim", default=512, most=MAX_HEAD_DIM)
    latent = config.size("q_lora_rank", default=1024)
    groups, inner = config.size("o_groups", default=8), config.size("o_lora_rank", default=1024)
    window = config.size("sliding_window", default=128)
    config.require(heads % groups == 0, "o_groups", f"a divisor of the {heads} heads")
    config.require(config.size("num_key_value_heads", default=1) == 1, "num_key_value_heads", "1")
    config.require(not config.flag("attention_bias", default=False), "attention_bias", "false")
    rotary = rotary_size(config, dim)
    main, far = (rope_table(settings, rotary) for settings in rope_settings(config))
    kinds, rates = layer_types(config), compress_rates(config)
    width = heads // groups * dim

    def compressor(layer: Reader, dim: int, kind: str) -> Compressor:
        features = dim if kind == HCA else 2 * dim
        return Compressor(
            layer.linear("wkv", features, hidden),
            layer.linear("wgate", features, hidden),
            layer.tensor("ape", rates[kind], features),
            layer.norm("norm", dim, eps),
            frequencies=far[0],
            rope_factor=far[1],
            overlap=kind == CSA,
        )

    def selector(layer: Reader) -> EntrySelector:
        count = config.size("index_n_heads", default=64)
        size = config.size("index_head_dim", default=128, most=MAX_HEAD_DIM)
        config.require(2 * len(far[0]) <= size, "index_head_dim", "at least what is rotated")
        return EntrySelector(
            layer.linear("wq_b", count * size, latent),
            layer.linear("weights_proj", count, hidden),
            compressor(layer.under("compressor"), size, CSA),
            config.size("index_topk", default=512),
        )

    def attention(n: int, layer: Reader) -> CompressedAttention:
        kind = kinds[n]
        frequencies, factor = main if kind == SLIDING else far
        format = layer.formats.attention or layer.stored_format("wo_a.weight")
        pieces = [
            layer.piece(
                "wo_a.weight",
                (groups * inner, width),
                rows=slice(group * inner, (group + 1) * inner),
            )
            for group in range(groups)
        ]
        o_a = PackedWeight.empty(format, (groups, inner, width))
        for group, piece in enumerate(pieces):
            layer.fill(o_a, group, piece)
        return CompressedAttention(
            layer.linear("wq_a", latent, hidden),
            layer.norm("q_norm", latent, eps),
            layer.linear("wq_b", heads * dim, latent),
            layer.linear("wkv", dim, hidden),
            layer.norm("kv_norm" if "kv_norm.weight" in layer else "norm", dim, eps),
            o_a,
            layer.linear("wo_b", hidden, groups * inner),
            heads=heads,
            sinks=layer.tensor("attn_sink", heads),
            window=window,
            frequencies=frequencies,
            rope_factor=factor,
            eps=eps,
            compressor=None
            if kind == SLIDING
            else compressor(layer.under("compressor"), dim, kind),
            selector=selector(layer.under("indexer")) if kind == CSA else None,
        )

    return attention


def _mixture(config: Config, hidden: int) -> Callable[[int, Reader], MoE]:
    experts = config.size("n_routed_experts", "num_local_experts")
    inner = config.size("moe_intermediate_size")
    k, vocab = top_k(config, experts), config.size("vocab_size")
    limit = config.number("swiglu_limit", default=10.0, above=0)
    # One shared expert, whatever n_shared_experts says (as transformers has it).
    config.size("n_shared_experts", default=1, least=0)
    hashed = hash_layers(config)
    rule: dict[str, Any] = {
        "score": config.choice(
            "scoring_func", ["sqrtsoftplus", "softmax", "sigmoid"], default="sqrtsoftplus"
        ),
        "normalize": True,
        "scale": config.number("routed_scaling_factor", default=1.5),
    }

    def mixture(n: int, layer: Reader) -> MoE:
        router: Router
        if hashed[n]:
            weight = layer.packed("gate.weight", experts, hidden, layer.formats.router)
            router = HashRouter(weight, layer.integers("gate.tid2eid", vocab, k), **rule)
        else:
            bias = layer.tensor(
                layer.first_of("gate.bias", "gate.e_score_correction_bias"), experts
            )
            router = layer.router("gate", experts, hidden, k, select_bias=bias, **rule)
        banks = layer.experts("experts", experts, inner, hidden, _EXPERT_PARTS, limit=limit)
        shared = layer.gated_mlp(
            "shared_experts", inner, hidden, "shared", _EXPERT_PARTS, limit=limit
        )
        return MoE(router, banks, shared)

    return mixture


# -- config.json ---------------------------------------------------------------------------


def _listed(config: Config, name: str, allowed: tuple[object, ...]) -> list[object] | None:
    """A list with one of `allowed` for each layer at least; None where the field is absent."""
    values, layers = config.get(name), layer_count(config)
    if values is None:
        return None
    if (
        not isinstance(values, list)
        or len(values) < layers
        or not all(type(v) in (int, str) and v in allowed for v in values)
    ):
        some = ", ".join(map(str, allowed))
        raise config.error(name, f"a list with one of {some} for each of {layers} layers")
    return values[:layers]


def layer_types(config: Config) -> list[str]:
    layers = layer_count(config)
    named = _listed(config, "layer_types", tuple(_BY_RATIO.values()))
    if named is not None:
        return [str(kind) for kind in named]
    ratios = _listed(config, "compress_ratios", tuple(_BY_RATIO))
    if ratios is not None:
        return [_BY_RATIO[ratio] for ratio in ratios if isinstance(ratio, int)]
    return [HCA if n < 2 or n % 2 == 0 else CSA for n in range(layers)]


def compress_rates(config: Config) -> dict[str, int]:
    """Tokens of a window, by the kind of layer."""
    rates = config.section("compress_rates")
    most = 1 << 20
    return {
        CSA: config.size("compress_rate_csa", default=rates.size(CSA, default=4), most=most),
        HCA: config.size("compress_rate_hca", default=rates.size(HCA, default=128), most=most),
    }


def hash_layers(config: Config) -> list[bool]:
    layers = layer_count(config)
    kinds = _listed(config, "mlp_layer_types", ("hash_moe", "moe"))
    if kinds is not None:
        return [kind == "hash_moe" for kind in kinds]
    first = config.size("num_hash_layers", default=3, least=0)
    return [n < first for n in range(layers)]


def rotary_size(config: Config, dim: int) -> int:
    """How many dimensions rotate: qk_rope_head_dim, or a part of the head."""
    part = config.number("partial_rotary_factor", default=64 / 512, above=0)
    size = config.size("qk_rope_head_dim", default=int(dim * part), most=MAX_HEAD_DIM)
    if config.get("partial_rotary_factor") is not None:
        size = int(dim * part)
    config.require(
        2 <= size <= dim and size % 2 == 0, "qk_rope_head_dim", f"an even number of 2 to {dim}"
    )
    return size


def rope_settings(config: Config) -> tuple[RopeSettings, RopeSettings]:
    """Those of layers with a window alone, and of those with compressed entries.

    Transformers 5 keeps both in `rope_parameters`, as `main` and `compress`. Before, `rope_theta`
    was of the first kind, `compress_rope_theta` and the scaling of the second; that one's yarn does
    not scale cos and sin.
    """
    nested = config.section("rope_parameters")
    if isinstance(nested.get("main"), dict) and isinstance(nested.get("compress"), dict):
        main = read_rope(config, layer_type="main", default_partial=1.0)
        far = read_rope(config, layer_type="compress", default_partial=1.0)
    else:
        theta = config.number("rope_theta", default=10000.0, above=0)
        main = RopeSettings(theta, {"rope_type": "default"}, 1.0, config)
        scaling = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
        fields = {k: v for k, v in config.section(scaling).items() if k != "rope_theta"}
        theta = config.number("compress_rope_theta", default=160000.0, above=0)
        far = read_rope(
            Config({**config.fields, scaling: fields, "rope_theta": theta}, config.path),
            default_partial=1.0,
        )
        if far.kind == "yarn":
            far.scaling.setdefault("attention_factor", 1.0)
    return replace(main, partial=1.0), replace(far, partial=1.0)
