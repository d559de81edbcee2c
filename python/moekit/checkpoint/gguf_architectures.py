"""What a row of the tables of GGUF architectures says, and the names that many rows share.

The rows: `gguf_classics`, `gguf_kinds` (layers of two kinds), `gguf_selective` (attention that
chooses what it reads) and `gguf_hybrids` (states).

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

FRAME = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER = {
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
SHARED = {
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}
BIASED = {"exp_probs_b.bias": "mlp.gate.e_score_correction_bias"}
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
SPARSE = {"ffn_gate_inp": "block_sparse_moe.gate"}

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
HEAD_DIM = (("head_dim", "attention.key_length"),)
MOE_SIZE = (("moe_intermediate_size", "expert_feed_forward_length"),)
DEEPSEEK_ROUTER = (
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
# expert_gating_func: enum llama_expert_gating_func_type.
SOFTMAX, SIGMOID, SQRT_SOFTPLUS = 1, 2, 4


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


W_PARTS = Banks(("w1", "w3", "w2"))
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
    # The layout of shared experts and dense layers that are not three matrices, by their names.
    shared: Mapping[str, Banks] = field(default_factory=dict)
    expert_count: str = "num_experts"
    prefix: str = "model.layers."
    frame: Names = field(default_factory=lambda: FRAME)
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
    # first), "but fourth" (all but every fourth), "but first" (all but the first of each four),
    # "ratios" (DeepSeek-V4's own key).
    windows: str = ""
    # Layers with a window and those without rotate each in their own way.
    rotations: bool = False
    # Which layers have experts is told by the tensors that are there.
    sparse: bool = False
    gating: int | None = None
    latent: bool = False
    # Norms have the one in their weights that the model adds.
    holds_one: bool = False
    # Names that layers with a certain tensor have instead.
    beside: Mapping[str, Names] = field(default_factory=dict)
    # Keys that `gguf_families` reads.
    own: Sequence[str] = ()
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
        return {**banks, **LAYER, **self.names}

    @property
    def all_fields(self) -> list[tuple[str, str]]:
        """Every (field, key), the family's own first: they win over the shared ones."""
        own = [*self.fields, (self.expert_count, "expert_count")]
        named = {name for name, _ in own} | {key for _, key in own}
        shared = [row for row in _SIZES if row[0] not in named and row[1] not in named]
        return own + shared
