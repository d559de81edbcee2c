"""Names that transformers 5 has in memory, as the published files of a family spell them.

`save_pretrained` writes the published names unless it is told otherwise
(`save_original_format=False`); a saved `state_dict()` has those of memory.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

from .source import quoted
from .tensors import Checkpoint
from .weights import WeightInfo

_GRANITE = (
    (r"\.block_sparse_moe\.router\.weight$", ".block_sparse_moe.router.layer.weight"),
    (r"\.block_sparse_moe\.experts\.gate_up_proj$", ".block_sparse_moe.input_linear.weight"),
    (r"\.block_sparse_moe\.experts\.down_proj$", ".block_sparse_moe.output_linear.weight"),
)
_BLOCK_SPARSE = ((r"\.mlp\.", ".block_sparse_moe."),)
_SPELLINGS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "bailing_hybrid": (
        (r"\.self_attn\.forget_gate\.", ".self_attn."),
        (r"\.self_attn\.o_proj\.", ".self_attn.dense."),
        (r"\.self_attn\.", ".attention."),
        (r"\.mlp\.gate\.e_score_correction_bias$", ".mlp.gate.expert_bias"),
        (r"^model\.embed_tokens\.", "model.word_embeddings."),
    ),
    "deepseek_v4": (
        (r"\.compressor\.indexer\.(q_b_proj)\.", r".indexer.\1."),
        (r"\.compressor\.indexer\.scorer\.", ".indexer."),
        (r"\.compressor\.indexer\.", ".indexer.compressor."),
        (r"\.compressor\.position_bias$", ".compressor.ape"),
        (r"\.compressor\.kv_proj\.", ".compressor.wkv."),
        (r"\.compressor\.gate_proj\.", ".compressor.wgate."),
        (r"\.compressor\.kv_norm\.", ".compressor.norm."),
        (r"\.self_attn\.sinks$", ".self_attn.attn_sink"),
        (r"\.self_attn\.q_a_norm\.", ".self_attn.q_norm."),
        (r"\.(q_a|q_b|kv|o_a|o_b)_proj\.", r".w\1."),
        (r"\.self_attn\.kv_norm\.", ".self_attn.norm."),
        (r"\.self_attn\.", ".attn."),
        (r"\.mlp\.gate\.e_score_correction_bias$", ".mlp.gate.bias"),
        (r"\.mlp\.shared_experts\.gate_proj\.", ".mlp.shared_experts.w1."),
        (r"\.mlp\.shared_experts\.down_proj\.", ".mlp.shared_experts.w2."),
        (r"\.mlp\.shared_experts\.up_proj\.", ".mlp.shared_experts.w3."),
        (r"\.mlp\.", ".ffn."),
        (r"\.input_layernorm\.", ".attn_norm."),
        (r"\.post_attention_layernorm\.", ".ffn_norm."),
        (r"\.(attn|ffn)_hc\.", r".hc_\1_"),
        (r"^lm_head\.", "head."),
    ),
    "ernie4_5_moe": ((r"\.mlp\.gate\.moe_statics\.", ".mlp.moe_statics."),),
    "exaone_moe": ((r"\.mlp\.gate\.e_score_correction_bias$", ".mlp.e_score_correction_bias"),),
    "granitemoe": _GRANITE,
    "granitemoehybrid": _GRANITE,
    "granitemoeshared": _GRANITE,
    "hy_v3": (
        (r"\.mlp\.e_score_correction_bias$", ".mlp.expert_bias"),
        (r"\.mlp\.gate\.weight$", ".mlp.router.gate.weight"),
        (r"\.mlp\.shared_experts\.", ".mlp.shared_mlp."),
    ),
    "kimi_linear": (
        (r"\.self_attn\.forget_gate\.", ".self_attn."),
        # Dense layers are `mlp` in Moonshot's files as well.
        (r"\.mlp\.(gate|experts|shared_experts)\.", r".block_sparse_moe.\1."),
    ),
    "laguna": (
        (r"\.mlp\.gate\.e_score_correction_bias$", ".mlp.experts.e_score_correction_bias"),
        (r"\.mlp\.shared_experts\.", ".mlp.shared_expert."),
    ),
    "mimo_v2_flash": ((r"\.self_attn\.sinks$", ".self_attn.attention_sink_bias"),),
    "minimax": _BLOCK_SPARSE,
    "minimax_m2": _BLOCK_SPARSE,
    "mixtral": _BLOCK_SPARSE,
    "nemotron_h": ((r"^model\.", "backbone."),),
    "phimoe": (
        (r"\.mlp\.router\.", ".block_sparse_moe.gate."),
        (r"\.mlp\.experts\.", ".block_sparse_moe.experts."),
    ),
}


def in_published_names(
    checkpoint: Checkpoint, weights: dict[str, WeightInfo], family: object
) -> dict[str, WeightInfo]:
    """The same weights; FileError where two of them come to one name."""
    rules = _SPELLINGS.get(family) if isinstance(family, str) else None
    if rules is None:
        return weights
    found: dict[str, WeightInfo] = {}
    for name, info in weights.items():
        said = name
        for pattern, published in rules:
            said = re.sub(pattern, published, said)
        if said in found:
            first = checkpoint.info(next(iter(info.parts.values())))
            raise checkpoint.error(first, f"gives {quoted(said)} a second time")
        found[said] = info if said == name else replace(info, name=said)
    return found
