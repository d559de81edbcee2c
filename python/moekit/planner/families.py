"""The table of model families: what each is assembled from, keyed by config.json's model_type.

A family is a row of building blocks. The rows follow the checkpoints as transformers 5.23 reads
them (and the original code where it has no class); tests compare every row with the class.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import schedule as s
from .attention import Compressed, Gqa, Mixer, Mla
from .ffn import Dense, Moe, Shared
from .fields import Flag, Names
from .recurrent import (
    GatedDeltaNet,
    KimiDelta,
    Lightning,
    Mamba1,
    Mamba2,
    ShortConvolution,
)

_BIAS = Flag("attention_bias")
_SHARED_N = Shared(count=("n_shared_experts", "num_shared_experts"), default=1)
_V3_MOE = Moe(shared=_SHARED_N, select_bias="buffer")
_KIMI_MOE = Moe(
    shared=Shared(count=("num_shared_experts", "n_shared_experts"), default=1),
    select_bias="buffer",
)
_FULL = s.always(s.FULL)
_SPARSE = s.always(s.SPARSE)


@dataclass(frozen=True, slots=True)
class Family:
    """One row: how a token is mixed, which layers have experts, and what stands around them."""

    mixer: Mixer
    moe: Moe | None = None
    dense: Dense | None = None
    kinds: s.Rule = _FULL
    sparse: s.Rule = _SPARSE
    linear: Mixer | None = None  # the mixer of "linear_attention" layers
    norms: int = 2  # hidden-sized norms in a layer
    norm_bias: bool = False
    tie: bool = False  # default of tie_word_embeddings
    ties: bool = True  # False: the classes never tie, whatever the field says
    tie_names: Names = "tie_word_embeddings"
    head_bias: bool | Flag = False
    mixers: int = 1  # attention blocks in a layer (LongCat has two, each with a dense FFN)
    hyper: bool = False  # DeepSeek-V4's four residual streams
    own_heads: bool = False  # num_attention_heads_per_layer (Laguna)
    mtp_names: Names = ""  # field with the number of multi-token prediction layers


_MLA_V3 = Family(
    Mla(),
    _V3_MOE,
    Dense(),
    sparse=s.first_dense(default=3),
    mtp_names=("num_nextn_predict_layers", "num_mtp_layers"),
)
_GRANITE = Gqa(qkv_bias=_BIAS, o_bias=_BIAS)
_LLAMA = Gqa(qkv_bias=_BIAS, o_bias=_BIAS)

# fmt: off
FAMILIES: dict[str, Family] = {
    # dense references
    "llama": Family(_LLAMA, None, Dense(bias=Flag("mlp_bias"))),
    "mistral": Family(Gqa(kv_default=8, window_default=4096), None, Dense(),
                      kinds=s.default_window),
    "qwen2": Family(Gqa(qkv_bias=True), None, Dense(), kinds=s.layer_types(s.qwen2_window)),
    "qwen3": Family(Gqa(qkv_bias=_BIAS, o_bias=_BIAS, qk_norm="head", head_dim=128), None, Dense(),
                    kinds=s.layer_types(s.qwen2_window)),
    # grouped-query attention, softmax routers
    "mixtral": Family(Gqa(kv_default=8), Moe(width="intermediate_size"), kinds=s.plain_window),
    "qwen2_moe": Family(
        Gqa(qkv_bias=Flag("qkv_bias", True)),
        Moe(shared=Shared(width="shared_expert_intermediate_size", gate=True)),
        Dense(), kinds=s.layer_types(s.qwen2_window), sparse=s.qwen_step,
    ),
    "qwen3_moe": Family(
        Gqa(qkv_bias=_BIAS, o_bias=_BIAS, qk_norm="head"), Moe(), Dense(),
        kinds=s.qwen_window, sparse=s.qwen_step,
    ),
    "qwen3_next": Family(
        Gqa(qkv_bias=_BIAS, o_bias=_BIAS, qk_norm="head", head_dim=256, gate="query"),
        Moe(shared=Shared(width="shared_expert_intermediate_size", gate=True)), Dense(),
        kinds=s.layer_types(s.every("full_attention_interval", 4, s.FULL, s.LINEAR)),
        sparse=s.qwen_step, linear=GatedDeltaNet(),
    ),
    "qwen3_5_moe_text": Family(
        Gqa(qkv_bias=_BIAS, o_bias=_BIAS, qk_norm="head", head_dim=256, gate="query"),
        Moe(shared=Shared(width="shared_expert_intermediate_size", gate=True)),
        kinds=s.layer_types(s.every("full_attention_interval", 4, s.FULL, s.LINEAR)),
        linear=GatedDeltaNet(),
    ),
    "olmoe": Family(Gqa(qkv_bias=_BIAS, o_bias=_BIAS, qk_norm="full"),
                    Moe(width="intermediate_size")),
    "flex_olmo": Family(Gqa(qkv_bias=_BIAS, o_bias=_BIAS, qk_norm="full"),
                        Moe(width="intermediate_size")),
    "deepseek": Family(Gqa(qkv_bias=_BIAS, o_bias=_BIAS), Moe(shared=_SHARED_N), Dense(),
                       sparse=s.first_dense()),
    "granitemoe": Family(_GRANITE, Moe(width="intermediate_size")),
    "granitemoeshared": Family(
        _GRANITE, Moe(width="intermediate_size", shared=Shared(width="shared_intermediate_size")),
    ),
    "granitemoe_swa": Family(
        Gqa(qkv_bias=_BIAS, o_bias=_BIAS, sinks="all", window_default=128),
        Moe(width="intermediate_size", shared=Shared(width="shared_intermediate_size")),
        kinds=s.layer_types(s.swa_attention),
    ),
    "phimoe": Family(
        Gqa(qkv_bias=_BIAS, o_bias=_BIAS, kv_default=8), Moe(width="intermediate_size"),
        kinds=s.plain_window, norm_bias=True, head_bias=Flag("lm_head_bias"),
    ),
    "hunyuan_v1_moe": Family(
        Gqa(qkv_bias=_BIAS, o_bias=_BIAS, qk_norm="head"),
        Moe(width="intermediate_size", shared=Shared(), top_k=("moe_topk", "num_experts_per_tok")),
    ),
    "mellum": Family(
        Gqa(qkv_bias=_BIAS, o_bias=_BIAS, qk_norm="head", head_dim=128, window_default=1024),
        Moe(), Dense(), kinds=s.layer_types(_FULL), sparse=s.mlp_types(_SPARSE),
    ),
    "dbrx": Family(Gqa(), Moe()),  # sizes live in two sections; see `_dbrx`
    "gpt_oss": Family(
        Gqa(qkv_bias=Flag("attention_bias", True), o_bias=Flag("attention_bias", True),
            head_dim=64, kv_default=8, sinks="all", window_default=128),
        Moe(width="intermediate_size", bias=True, router_bias=True,
            top_k=("num_experts_per_tok", "experts_per_token")),
        kinds=s.layer_types(lambda f, n: [s.FULL if i % 2 else s.SLIDING for i in range(n)]),
    ),
    "llama4_text": Family(
        Gqa(qkv_bias=_BIAS, o_bias=_BIAS, window="attention_chunk_size", window_default=8192),
        Moe(width="intermediate_size", shared=Shared()), Dense("intermediate_size_mlp"),
        kinds=s.layer_types(s.llama4_attention), sparse=s.llama4_sparse,
    ),
    # sigmoid routers with a selection bias
    "glm4_moe": Family(
        Gqa(qkv_bias=_BIAS, qk_norm="head", qk_norm_if=Flag("use_qk_norm")), _V3_MOE, Dense(),
        sparse=s.first_dense(default=1), mtp_names=("num_nextn_predict_layers", "num_mtp_layers"),
    ),
    "dots1": Family(
        Gqa(qkv_bias=_BIAS, o_bias=_BIAS, qk_norm="head", window_default=4096), _V3_MOE, Dense(),
        kinds=s.layer_types(s.late_window), sparse=s.first_dense(),
    ),
    "minimax_m2": Family(Gqa(qk_norm="full", head_dim=128, kv_default=8),
                         Moe(width="intermediate_size", select_bias="buffer")),
    "minimax_m3_vl_text": Family(
        Gqa(qk_norm="head", head_dim=128, kv_default=4, index=True),
        Moe(width="intermediate_size", select_bias="buffer",
            shared=Shared(width="shared_intermediate_size", default=3072)),
        Dense("dense_intermediate_size"),
        kinds=s.layer_types(s.m3_attention, ("minimax_m3_sparse",)),
        sparse=s.mlp_types(s.m3_sparse),
    ),
    "hy_v3": Family(
        Gqa(qkv_bias=_BIAS, o_bias=_BIAS, qk_norm="head", head_dim=128, kv_default=8),
        Moe(shared=Shared(count="num_shared_experts", default=1, bias=Flag("mlp_bias")),
            select_bias="buffer"),
        Dense(bias=Flag("mlp_bias")), sparse=s.mlp_types(s.first_dense("", 1)),
    ),
    "afmoe": Family(
        Gqa(qkv_bias=_BIAS, o_bias=_BIAS, qk_norm="head", head_dim=128, gate="matrix",
            window_default=1024),
        Moe(shared=Shared(count="num_shared_experts", default=2), select_bias="parameter"),
        Dense(), norms=4, sparse=s.first_dense("num_dense_layers", 1),
        kinds=s.layer_types(s.every("global_attn_every_n_layers", 4, s.FULL, s.SLIDING)),
    ),
    "exaone_moe": Family(
        Gqa(qk_norm="head", window_default=4096), _V3_MOE, Dense(),
        kinds=s.layer_types(s.exaone_attention), sparse=s.mlp_types(s.first_dense(default=1)),
    ),
    "solar_open": Family(Gqa(qkv_bias=_BIAS, head_dim=128, kv_default=8), _V3_MOE),
    "mimo_v2_flash": Family(
        Gqa(qkv_bias=_BIAS, head_dim=192, v_head_dim=128, kv_default=4, sinks="sliding",
            sliding_kv=2, window_default=129),
        Moe(select_bias="buffer"), Dense(), kinds=s.layer_types(s.mimo_attention),
        sparse=s.mlp_types(s.first_dense("", 1)),
    ),
    "ernie4_5_moe": Family(
        Gqa(qkv_bias=Flag("use_bias"), o_bias=Flag("use_bias"), kv_default=4),
        Moe(shared=Shared(count="moe_num_shared_experts", default=2, bias=Flag("use_bias")),
            select_bias="parameter"),
        Dense(bias=Flag("use_bias")), sparse=s.ernie_sparse, tie=True, head_bias=Flag("use_bias"),
    ),
    "laguna": Family(
        Gqa(qkv_bias=_BIAS, o_bias=_BIAS, qk_norm="head", head_dim=128, kv_default=8, gate="head",
            window_default=512),
        Moe(shared=Shared(width="shared_expert_intermediate_size", default=512),
            select_bias="parameter"),
        Dense(), kinds=s.layer_types(_FULL), sparse=s.mlp_types(s.first_dense("", 1)),
        own_heads=True,
    ),
    "cohere2_moe": Family(
        Gqa(qkv_bias=_BIAS, o_bias=_BIAS, head_dim=128, window_default=4096),
        Moe(width="intermediate_size", shared=Shared(count="num_shared_experts")),
        Dense(("prefix_dense_intermediate_size", "intermediate_size")),
        kinds=s.layer_types(s.cohere_attention), sparse=s.mlp_types(s.first_dense()),
        norms=1, tie=True,
    ),
    # multi-head latent attention
    "deepseek_v2": Family(
        Mla(), Moe(shared=Shared(count="n_shared_experts", default=2, bias=Flag("mlp_bias"))),
        Dense(bias=Flag("mlp_bias")), sparse=s.first_dense(),
    ),
    "deepseek_v3": _MLA_V3,
    "deepseek_v32": Family(
        Mla(index_heads=64), _V3_MOE, Dense(), sparse=s.mlp_types(s.first_dense(default=3)),
        mtp_names="num_nextn_predict_layers",
    ),
    "glm_moe_dsa": Family(
        Mla(q_lora=2048, nope=192, v=256, index_heads=32), _V3_MOE, Dense(),
        kinds=s.dsa_attention, sparse=s.mlp_types(s.first_dense(default=3)),
        mtp_names="num_nextn_predict_layers",
    ),
    "glm4_moe_lite": Family(
        Mla(q_lora=768, nope=192, v=256), _V3_MOE, Dense(),
        sparse=s.mlp_types(s.first_dense("", 1)),
    ),
    "mistral4": Family(Mla(q_lora=1024, kv_lora=256, nope=64), Moe(shared=_SHARED_N), Dense(),
                       sparse=s.first_dense()),
    "axk1": Family(
        Mla(), Moe(shared=_SHARED_N, select_bias="buffer", post_norm=True), Dense(),
        sparse=s.mlp_types(s.first_dense(default=1)),
    ),
    "longcat_flash": Family(
        Mla(),
        Moe(experts="n_routed_experts", width="expert_ffn_hidden_size", top_k="moe_topk",
            zero_experts="zero_expert_num", select_bias="buffer", router_bias=Flag("router_bias")),
        Dense("ffn_hidden_size"), mixers=2, norms=4,
    ),
    "deepseek_v4": Family(
        Compressed(), Moe(shared=_SHARED_N, select_bias="buffer"),
        kinds=s.layer_types(
            s.v4_attention, ("compressed_sparse_attention", "heavily_compressed_attention")
        ),
        sparse=s.listed("mlp_layer_types", ("moe", "hash_moe"), s.v4_sparse), hyper=True,
    ),
    # recurrent mixers
    "minimax": Family(
        Gqa(kv_default=8), Moe(width="intermediate_size"), linear=Lightning(),
        kinds=s.layer_types(lambda f, n: [s.LINEAR if i % 2 else s.FULL for i in range(n)]),
    ),
    "jamba": Family(
        Gqa(kv_default=8), Moe(width="intermediate_size"), Dense(),
        kinds=s.listed("layers_block_type", ("mamba", "attention", s.LINEAR, s.FULL),
                       s.jamba_attention),
        sparse=s.mlp_types(s.jamba_sparse), linear=Mamba1(),
    ),
    "granitemoehybrid": Family(
        _GRANITE,
        Moe(width="intermediate_size", optional=True,
            shared=Shared(width="shared_intermediate_size", default=1024)),
        kinds=s.listed("layers_block_type", ("mamba", "attention", s.LINEAR, s.FULL),
                       s.listed("layer_types", ("mamba", "attention", s.LINEAR, s.FULL),
                                s.always(s.LINEAR))),
        linear=Mamba2(),
    ),
    "lfm2_moe": Family(
        Gqa(qk_norm="head", kv_default=8), Moe(select_bias="buffer"), Dense(),
        kinds=s.listed("layer_types", ("conv", s.FULL), s.always(s.FULL)),
        sparse=s.first_dense("num_dense_layers", 2), linear=ShortConvolution(), tie=True,
        tie_names=("tie_embedding", "tie_word_embeddings"),
    ),
    "kimi_linear": Family(
        Mla(q_lora=None), _KIMI_MOE, Dense(), kinds=s.layer_types(s.kimi_attention),
        sparse=s.mlp_types(s.first_dense(default=1)), linear=KimiDelta(),
        ties=False,
    ),
    "bailing_hybrid": Family(
        Mla(q_lora=None, gate=True), _KIMI_MOE, Dense(),
        kinds=s.layer_types(s.every("layer_group_size", 6, s.FULL, s.LINEAR)),
        sparse=s.mlp_types(s.first_dense(default=2)), linear=KimiDelta(low_rank=False),
        ties=False,
    ),
    "nemotron_h": Family(
        Gqa(head_dim=128, kv_default=8),
        Moe(select_bias="buffer", gated=False, latent="moe_latent_size",
            latent_bias=Flag("mlp_bias"),
            shared=Shared(width="moe_shared_expert_intermediate_size", default=7688, gated=False,
                          bias=Flag("mlp_bias"))),
        Dense(bias=Flag("mlp_bias"), gated=False), kinds=s.nemotron_blocks,
        linear=Mamba2("mamba_num_heads", "mamba_head_dim", ("mamba_n_groups", "n_groups"),
                      "ssm_state_size", ("mamba_d_conv", "conv_kernel"),
                      ("mamba_conv_bias", "use_conv_bias"), "use_bias", (128, 64, 8, 128, 4)),
        norms=1, ties=False,
    ),
}
# fmt: on

# Other names of the same structure; a wrapper's text model is read from its text_config.
ALIASES = {
    "kimi_k2": "deepseek_v3",
    "deepseek_moe": "deepseek",
    "gemma4": "gemma4_text",
    "llama4": "llama4_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "qwen3_vl_moe_text": "qwen3_moe",
    "minimax_m3_vl": "minimax_m3_vl_text",
    "hunyuan": "hunyuan_v1_moe",
}
