"""THE table of GGUF architectures: which family each is, and what its tensors and keys are called.

Names and conventions are those of llama.cpp's converter (conversion/*.py) and gguf-py's constants.
A row is read in both directions: loading a GGUF file, and writing one.

Tensor names: GGUF's, without `blk.N.` and `.weight`, to those of the Hugging Face checkpoint,
without `model.layers.N.` and `.weight`; `.bias` follows its weight. Names with a dot in front of
`weight` or `bias` on the left stand for that one tensor. The banks `ffn_*_exps` are found under
`<experts>.{gate,up,down}_exps`.

Fields: Hugging Face's name, then GGUF's key without the architecture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Names = Mapping[str, str]
# (field of config.json, key of GGUF)
Fields = Sequence[tuple[str, str]]

_FRAME = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
}
_SHARED = {
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}
_BIASED = {"exp_probs_b.bias": "mlp.gate.e_score_correction_bias"}
LATENT = {
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "attn_k_b": "self_attn.k_b_proj",
    "attn_v_b": "self_attn.v_b_proj",
}
_SPARSE = {"ffn_gate_inp": "block_sparse_moe.gate"}

_SIZES = (
    ("hidden_size", "embedding_length"),
    ("num_hidden_layers", "block_count"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("intermediate_size", "feed_forward_length"),
    ("num_experts_per_tok", "expert_used_count"),
    ("max_position_embeddings", "context_length"),
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
)
_HEAD_DIM = (("head_dim", "attention.key_length"),)
_MOE_SIZE = (("moe_intermediate_size", "expert_feed_forward_length"),)
_DEEPSEEK_ROUTER = (
    ("n_shared_experts", "expert_shared_count"),
    ("first_k_dense_replace", "leading_dense_block_count"),
    ("routed_scaling_factor", "expert_weights_scale"),
    ("norm_topk_prob", "expert_weights_norm"),
    ("n_group", "expert_group_count"),
    ("topk_group", "expert_group_used_count"),
)
LATENT_SIZES = (
    ("q_lora_rank", "attention.q_lora_rank"),
    ("kv_lora_rank", "attention.kv_lora_rank"),
    ("qk_rope_head_dim", "rope.dimension_count"),
    ("v_head_dim", "attention.value_length_mla"),
)
_EVERY_LAYER = {"decoder_sparse_step": 1, "mlp_only_layers": [], "use_sliding_window": False}
# expert_gating_func: enum llama_expert_gating_func_type.
SOFTMAX, SIGMOID = 1, 2


@dataclass(frozen=True, slots=True)
class Banks:
    """How Hugging Face's checkpoint lays out experts, or a feed-forward layer under one name.

    Either tensors of their own under `parts` (gate, up, down), or with `both` the fused banks that
    `models.expert_layouts.Layout` describes.
    """

    parts: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    both: str = ""
    down: str = "down_proj"
    transposed: bool = False
    interleaved: bool = False
    stacked: bool = False


_W = Banks(("w1", "w3", "w2"))
INPUT_OUTPUT = Banks(both="input_linear.weight", down="output_linear.weight")


@dataclass(frozen=True, slots=True)
class Architecture:
    """A row: GGUF's name, Hugging Face's `model_type`, and where the two differ from others."""

    name: str
    family: str
    names: Names = field(default_factory=dict)
    fields: Fields = ()
    experts: str = "mlp.experts"
    banks: Banks = field(default_factory=Banks)
    # The layout of a shared expert that is not three matrices, and its name.
    shared: tuple[str, Banks] | None = None
    expert_count: str = "num_experts"
    prefix: str = "model.layers."
    frame: Names = field(default_factory=lambda: _FRAME)
    # Fields that GGUF leaves to the architecture; a config that differs cannot be written.
    fixed: Mapping[str, object] = field(default_factory=dict)
    # Keys that are written with every file of the architecture.
    written: Mapping[str, object] = field(default_factory=dict)
    # The rows of q and k are in the order of pairs (x0 x1 x2 ...) instead of halves.
    paired: bool = False
    # What a file has to say for this row to be its own, where rows share a name.
    requires: Mapping[str, object] = field(default_factory=dict)
    # RoPE's dimensions are given apart from the head's.
    partial: bool = False
    # [1, n] in Hugging Face's files, [n] in GGUF's.
    rows: Sequence[str] = ()
    # [n, 1, m] in Hugging Face's files, [n, m] in GGUF's.
    middles: Sequence[str] = ()
    # What a layer is that has 0 key-value heads, among layers of attention.
    mixer: str = ""
    # Which layers see a window: "pattern" (GGUF lists them), "alternate" (every second from the
    # first), "but fourth" (all but every fourth), "but first" (all but the first of each four).
    windows: str = ""
    # Layers with a window and those without rotate each in their own way.
    rotations: bool = False
    # Which layers have experts is told by the tensors that are there.
    sparse: bool = False
    gating: int | None = None
    latent: bool = False
    # What experts do between their products, by the core's name.
    activation: str = "silu"
    # Yarn's bounds are not rounded to whole pairs.
    truncate: bool = True
    # The field that says what each layer is, and the name of the kind without keys and values.
    kinds: str = ""
    recurrent: str = "linear_attention"
    # What llama.cpp computes otherwise than the model; a file is written all the same.
    differs: str = ""

    @property
    def layer_names(self) -> dict[str, str]:
        """GGUF's names in a block, banks of experts included."""
        banks = {
            f"ffn_{role}_exps.{end}": f"{self.experts}.{role}_exps{tail}"
            for role in ("gate", "up", "down", "gate_up")
            for end, tail in (("weight", ""), ("bias", "_bias"))
        }
        return {**banks, **_LAYER, **self.names}

    @property
    def all_fields(self) -> list[tuple[str, str]]:
        """Every (field, key), the family's own first: they win over the shared ones."""
        own = [*self.fields, (self.expert_count, "expert_count")]
        named = {name for name, _ in own} | {key for _, key in own}
        shared = [row for row in _SIZES if row[0] not in named and row[1] not in named]
        return own + shared


ARCHITECTURES = (
    Architecture(
        "llama",
        "mixtral",
        _SPARSE,
        experts="block_sparse_moe.experts",
        banks=_W,
        expert_count="num_local_experts",
        fields=(*_HEAD_DIM, ("sliding_window", "attention.sliding_window")),
        paired=True,
        differs="llama.cpp does not apply sliding_window",
    ),
    Architecture(
        "qwen2moe",
        "qwen2_moe",
        {
            "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
            "ffn_up_shexp": "mlp.shared_expert.up_proj",
            "ffn_down_shexp": "mlp.shared_expert.down_proj",
            "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
        },
        fields=(
            *_MOE_SIZE,
            ("shared_expert_intermediate_size", "expert_shared_feed_forward_length"),
        ),
        rows=("ffn_gate_inp_shexp",),
        fixed={"norm_topk_prob": False, **_EVERY_LAYER},
    ),
    Architecture(
        "qwen3moe",
        "qwen3_moe",
        fields=(*_HEAD_DIM, *_MOE_SIZE),
        fixed={"norm_topk_prob": True, **_EVERY_LAYER},
    ),
    Architecture(
        "olmoe",
        "olmoe",
        fields=(("clip_qkv", "attention.clamp_kqv"),),
        fixed={"norm_topk_prob": False},
    ),
    Architecture(
        "deepseek2",
        "deepseek_v3",
        {**LATENT, **_SHARED, **_BIASED},
        fields=(*_MOE_SIZE, *_DEEPSEEK_ROUTER, *LATENT_SIZES),
        expert_count="n_routed_experts",
        requires={"expert_gating_func": SIGMOID},
        gating=SIGMOID,
        latent=True,
        fixed={
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
            "moe_layer_freq": 1,
            "rope_interleave": True,
        },
    ),
    Architecture(
        "deepseek2",
        "deepseek_v2",
        {**LATENT, **_SHARED},
        fields=(*_MOE_SIZE, *_DEEPSEEK_ROUTER, *LATENT_SIZES),
        expert_count="n_routed_experts",
        gating=SOFTMAX,
        latent=True,
        fixed={"moe_layer_freq": 1},
        differs="llama.cpp ranks groups of experts otherwise",
    ),
    Architecture(
        "deepseek",
        "deepseek",
        _SHARED,
        fields=(*_MOE_SIZE, *_DEEPSEEK_ROUTER[:3]),
        expert_count="n_routed_experts",
        paired=True,
        fixed={"norm_topk_prob": False, "moe_layer_freq": 1},
    ),
    Architecture(
        "llama4",
        "llama4_text",
        {
            "ffn_gate": "feed_forward.gate_proj",
            "ffn_up": "feed_forward.up_proj",
            "ffn_down": "feed_forward.down_proj",
            "ffn_gate_inp": "feed_forward.router",
            "ffn_gate_shexp": "feed_forward.shared_expert.gate_proj",
            "ffn_up_shexp": "feed_forward.shared_expert.up_proj",
            "ffn_down_shexp": "feed_forward.shared_expert.down_proj",
        },
        fields=(
            *_HEAD_DIM,
            ("intermediate_size_mlp", "feed_forward_length"),
            ("intermediate_size", "expert_feed_forward_length"),
            ("interleave_moe_layer_step", "interleave_moe_layer_step"),
            ("attention_chunk_size", "attention.chunk_size"),
        ),
        experts="feed_forward.experts",
        banks=Banks(both="gate_up_proj", transposed=True),
        expert_count="num_local_experts",
        fixed={"attn_temperature_tuning": True, "floor_scale": 8192, "attn_scale": 0.1},
        differs="llama.cpp's temperature and query norms are those of the released sizes",
    ),
    Architecture(
        "gpt-oss",
        "gpt_oss",
        {
            "post_attention_norm": "post_attention_layernorm",
            "attn_sinks.weight": "self_attn.sinks",
            "ffn_gate_inp": "mlp.router",
        },
        fields=(
            *_HEAD_DIM,
            ("intermediate_size", "expert_feed_forward_length"),
            ("sliding_window", "attention.sliding_window"),
        ),
        banks=Banks(both="gate_up_proj", transposed=True, interleaved=True),
        expert_count="num_local_experts",
        truncate=False,
        activation="swiglu_oai",
        fixed={"swiglu_limit": 7.0, "swiglu_alpha": 1.702},
        windows="alternate",
    ),
    Architecture(
        "glm4moe",
        "glm4_moe",
        {**_SHARED, **_BIASED, "post_attention_norm": "post_attention_layernorm"},
        fields=(*_HEAD_DIM, *_MOE_SIZE, *_DEEPSEEK_ROUTER),
        expert_count="n_routed_experts",
        partial=True,
        gating=SIGMOID,
    ),
    Architecture(
        "granitemoe",
        "granitemoeshared",
        {
            "ffn_gate_inp": "block_sparse_moe.router.layer",
            "ffn_gate_shexp": "shared_mlp.gate_proj",
            "ffn_up_shexp": "shared_mlp.up_proj",
            "ffn_down_shexp": "shared_mlp.down_proj",
        },
        fields=(
            ("attention_multiplier", "attention.scale"),
            ("embedding_multiplier", "embedding_scale"),
            ("residual_multiplier", "residual_scale"),
            ("logits_scaling", "logit_scale"),
            ("shared_intermediate_size", "expert_shared_feed_forward_length"),
        ),
        experts="block_sparse_moe",
        banks=INPUT_OUTPUT,
        shared=("shared_mlp", INPUT_OUTPUT),
        expert_count="num_local_experts",
        paired=True,
        requires={"expert_shared_feed_forward_length": int},
    ),
    Architecture(
        "granitemoe",
        "granitemoe",
        {"ffn_gate_inp": "block_sparse_moe.router.layer"},
        fields=(
            ("attention_multiplier", "attention.scale"),
            ("embedding_multiplier", "embedding_scale"),
            ("residual_multiplier", "residual_scale"),
            ("logits_scaling", "logit_scale"),
        ),
        experts="block_sparse_moe",
        banks=INPUT_OUTPUT,
        expert_count="num_local_experts",
        paired=True,
    ),
    Architecture(
        "phimoe",
        "phimoe",
        _SPARSE,
        fields=(("sliding_window", "attention.sliding_window"),),
        experts="block_sparse_moe.experts",
        banks=_W,
        expert_count="num_local_experts",
        fixed={"attention_bias": True, "lm_head_bias": True, "router_jitter_noise": 0.01},
        differs="llama.cpp routes by a plain softmax of the two best",
    ),
    Architecture(
        "dbrx",
        "dbrx",
        {
            "attn_norm": "norm_attn_norm.norm_1",
            "attn_output_norm": "norm_attn_norm.norm_2",
            "attn_qkv": "norm_attn_norm.attn.Wqkv",
            "attn_output": "norm_attn_norm.attn.out_proj",
            "ffn_gate_inp": "ffn.router.layer",
        },
        fields=(
            ("d_model", "embedding_length"),
            ("n_heads", "attention.head_count"),
            ("n_layers", "block_count"),
            ("max_seq_len", "context_length"),
            ("attn_config.kv_n_heads", "attention.head_count_kv"),
            ("attn_config.clip_qkv", "attention.clamp_kqv"),
            ("attn_config.rope_theta", "rope.freq_base"),
            ("ffn_config.ffn_hidden_size", "feed_forward_length"),
            ("ffn_config.moe_top_k", "expert_used_count"),
        ),
        experts="ffn.experts.mlp",
        banks=Banks(("w1", "v1", "w2"), stacked=True),
        expert_count="ffn_config.moe_num_experts",
        prefix="transformer.blocks.",
        written={"attention.layer_norm_epsilon": 1e-5},
        fixed={"ffn_config.moe_normalize_expert_weights": 1.0},
        frame={
            "token_embd": "transformer.wte",
            "output_norm": "transformer.norm_f",
            "output": "lm_head",
        },
    ),
    Architecture(
        "dots1",
        "dots1",
        {**_SHARED, **_BIASED},
        fields=(*_HEAD_DIM, *_MOE_SIZE, *_DEEPSEEK_ROUTER),
        expert_count="n_routed_experts",
        gating=SIGMOID,
    ),
    Architecture(
        "ernie4_5-moe",
        "ernie4_5_moe",
        {**_SHARED, "exp_probs_b.bias": "mlp.moe_statics.e_score_correction_bias"},
        fields=(
            *_MOE_SIZE,
            ("moe_k", "expert_used_count"),
            ("moe_num_shared_experts", "expert_shared_count"),
            ("moe_layer_interval", "interleave_moe_layer_step"),
            ("moe_layer_start_index", "leading_dense_block_count"),
        ),
        expert_count="moe_num_experts",
        rows=("exp_probs_b.bias",),
    ),
    Architecture(
        "hunyuan-moe",
        "hunyuan_v1_moe",
        {
            "attn_q_norm": "self_attn.query_layernorm",
            "attn_k_norm": "self_attn.key_layernorm",
            "ffn_gate_inp": "mlp.gate.wg",
            "ffn_gate_shexp": "mlp.shared_mlp.gate_proj",
            "ffn_up_shexp": "mlp.shared_mlp.up_proj",
            "ffn_down_shexp": "mlp.shared_mlp.down_proj",
        },
        fields=(
            *_HEAD_DIM,
            ("intermediate_size", "expert_feed_forward_length"),
            ("moe_topk", "expert_used_count"),
        ),
    ),
    Architecture(
        "minimax-m2",
        "minimax_m2",
        {**_SPARSE, "exp_probs_b.bias": "block_sparse_moe.e_score_correction_bias"},
        fields=(*_HEAD_DIM, ("intermediate_size", "expert_feed_forward_length")),
        experts="block_sparse_moe.experts",
        banks=_W,
        expert_count="num_local_experts",
        partial=True,
        gating=SIGMOID,
    ),
    Architecture(
        "exaone-moe",
        "exaone_moe",
        {**_SHARED, "exp_probs_b.bias": "mlp.e_score_correction_bias"},
        fields=(
            *_HEAD_DIM,
            *_MOE_SIZE,
            ("num_shared_experts", "expert_shared_count"),
            *_DEEPSEEK_ROUTER[1:4],
            ("sliding_window", "attention.sliding_window"),
        ),
        gating=SIGMOID,
        fixed={"n_group": 1, "topk_group": 1},
        windows="pattern",
    ),
    Architecture(
        "afmoe",
        "afmoe",
        {
            **_SHARED,
            "attn_gate": "self_attn.gate_proj",
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_mlp_layernorm",
            "post_ffw_norm": "post_mlp_layernorm",
            "ffn_gate_inp": "mlp.router.gate",
            "exp_probs_b.bias": "mlp.expert_bias",
        },
        fields=(
            *_HEAD_DIM,
            *_MOE_SIZE,
            ("num_shared_experts", "expert_shared_count"),
            ("num_dense_layers", "leading_dense_block_count"),
            ("route_scale", "expert_weights_scale"),
            ("sliding_window", "attention.sliding_window"),
        ),
        gating=SIGMOID,
        fixed={"mup_enabled": True, "global_attn_every_n_layers": 4},
        written={"expert_weights_norm": True},
        windows="but fourth",
    ),
    Architecture(
        "lfm2moe",
        "lfm2_moe",
        {
            "attn_norm": "operator_norm",
            "attn_q_norm": "self_attn.q_layernorm",
            "attn_k_norm": "self_attn.k_layernorm",
            "attn_output": "self_attn.out_proj",
            "shortconv.conv": "conv.conv",
            "shortconv.in_proj": "conv.in_proj",
            "shortconv.out_proj": "conv.out_proj",
            "ffn_norm": "ffn_norm",
            "ffn_gate": "feed_forward.w1",
            "ffn_up": "feed_forward.w3",
            "ffn_down": "feed_forward.w2",
            "ffn_gate_inp": "feed_forward.gate",
            "exp_probs_b.bias": "feed_forward.expert_bias",
        },
        fields=(
            *_MOE_SIZE,
            ("norm_eps", "attention.layer_norm_rms_epsilon"),
            ("num_dense_layers", "leading_dense_block_count"),
            ("conv_L_cache", "shortconv.l_cache"),
        ),
        experts="feed_forward.experts",
        banks=_W,
        frame={
            "token_embd": "model.embed_tokens",
            "token_embd_norm": "model.embedding_norm",
            "output": "lm_head",
        },
        gating=SIGMOID,
        fixed={
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.0,
            "use_expert_bias": True,
            "conv_bias": False,
        },
        middles=("shortconv.conv",),
        mixer="conv",
    ),
)
