"""A random configuration of odd sizes for every family that the planner knows."""

from __future__ import annotations

import random
from typing import Any


class Draw:
    """Random odd sizes and options for one configuration."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        r = self.rng
        self.layers = r.randint(3, 9)
        self.heads = r.choice([2, 4, 6])
        self.kv = r.choice([h for h in (1, 2, self.heads) if self.heads % h == 0])
        self.head_dim = r.choice([6, 10, 14])
        self.hidden = self.heads * r.choice([6, 10, 14])
        self.experts = r.randint(3, 11)

    def flag(self) -> bool:
        return self.rng.random() < 0.5

    def odd(self, low: int = 5, high: int = 41) -> int:
        return self.rng.randrange(low | 1, high, 2)

    def pick(self, *values: Any) -> Any:
        return self.rng.choice(values)

    def kinds(self, *names: str) -> list[str]:
        return [self.rng.choice(names) for _ in range(self.layers)]

    def base(self, **extra: Any) -> dict[str, Any]:
        """The fields nearly every family has."""
        return {
            "vocab_size": self.odd(31, 99),
            "hidden_size": self.hidden,
            "intermediate_size": self.odd(),
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv,
            "tie_word_embeddings": self.flag(),
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **extra,
        }

    def maybe(self, **extra: Any) -> dict[str, Any]:
        """Each of `extra` or nothing: what is left out takes the class's default."""
        return {k: v for k, v in extra.items() if self.flag()}

    def v3(self, **extra: Any) -> dict[str, Any]:
        return self.base(
            moe_intermediate_size=self.odd(),
            n_routed_experts=self.experts,
            num_experts_per_tok=self.rng.randint(1, self.experts),
            n_shared_experts=self.rng.randint(1, 3),
            first_k_dense_replace=self.rng.randint(0, self.layers),
            n_group=1,
            topk_group=1,
            attention_bias=self.flag(),
            **extra,
        )

    def mla(self, **extra: Any) -> dict[str, Any]:
        return self.v3(
            kv_lora_rank=self.odd(),
            q_lora_rank=self.odd(),
            qk_nope_head_dim=self.odd(),
            qk_rope_head_dim=self.pick(2, 6),
            v_head_dim=self.odd(),
            **extra,
        ) | {"num_key_value_heads": self.heads}

    def moe(self, count: str = "num_experts", **extra: Any) -> dict[str, Any]:
        return self.base(
            **{count: self.experts}, num_experts_per_tok=self.rng.randint(1, self.experts), **extra
        )


def _qwen(d: Draw, **extra: Any) -> dict[str, Any]:
    return d.moe(
        moe_intermediate_size=d.odd(),
        decoder_sparse_step=d.pick(1, 2, 3),
        mlp_only_layers=d.pick([], [0], [1, 2]),
        **extra,
    )


def _delta(d: Draw) -> dict[str, Any]:
    keys = d.pick(1, 2)
    return {
        "linear_num_key_heads": keys,
        "linear_num_value_heads": keys * d.pick(1, 2, 3),
        "linear_key_head_dim": d.odd(),
        "linear_value_head_dim": d.odd(),
        "linear_conv_kernel_dim": d.pick(2, 3, 4),
        "shared_expert_intermediate_size": d.odd(),
        "head_dim": 8,
        **d.pick({}, {"layer_types": d.kinds("linear_attention", "full_attention")}),
    }


def _v4(d: Draw) -> dict[str, Any]:
    dim, groups = d.pick(16, 32), d.pick(1, 2)
    config = d.base(
        moe_intermediate_size=d.odd(),
        head_dim=dim,
        q_lora_rank=d.odd(),
        o_groups=groups,
        o_lora_rank=d.odd(),
        n_routed_experts=d.experts,
        n_shared_experts=1,
        num_experts_per_tok=2,
        index_n_heads=d.odd(),
        index_head_dim=d.pick(16, 32),
        index_topk=8,
        hc_mult=d.pick(2, 3, 4),
        num_hash_layers=d.pick(0, 1, 2),
        sliding_window=8,
        **d.pick({}, {"compress_ratios": [d.pick(0, 4, 128) for _ in range(d.layers)]}),
    ) | {"num_key_value_heads": 1}
    del config["intermediate_size"]  # the class takes it for another name of the experts' width
    return config


def _switch(d: Draw) -> dict[str, Any]:
    encoder, decoder = d.rng.randint(2, 6), d.rng.randint(2, 6)
    return {
        "vocab_size": d.odd(31, 99),
        "d_model": d.hidden,
        "d_kv": d.odd(),
        "d_ff": d.odd(),
        "num_heads": d.heads,
        "num_layers": encoder,
        "num_decoder_layers": decoder,
        "num_sparse_encoder_layers": d.rng.randint(0, encoder),
        "num_sparse_decoder_layers": d.rng.randint(0, decoder),
        "num_experts": d.experts,
        "router_bias": d.flag(),
        "relative_attention_num_buckets": d.odd(),
    }


def _nllb(d: Draw) -> dict[str, Any]:
    return {
        "vocab_size": d.odd(31, 99),
        "d_model": d.hidden,
        "num_experts": d.experts,
        "encoder_layers": d.rng.randint(1, 6),
        "decoder_layers": d.rng.randint(1, 6),
        "encoder_attention_heads": d.heads,
        "decoder_attention_heads": d.heads,
        "encoder_ffn_dim": d.odd(),
        "decoder_ffn_dim": d.odd(),
        "router_bias": d.flag(),
        "encoder_sparse_step": d.pick(0, 1, 2, 4),
        "decoder_sparse_step": d.pick(1, 2, 3),
    }


def _jamba(d: Draw) -> dict[str, Any]:
    period = d.pick(1, 2, 3)
    return d.moe(
        attn_layer_period=period,
        attn_layer_offset=period - 1,
        expert_layer_period=2,
        expert_layer_offset=d.pick(0, 1),
        mamba_d_state=d.odd(),
        mamba_d_conv=3,
        mamba_expand=d.pick(1, 2),
        mamba_dt_rank=d.pick("auto", 5),
        mamba_conv_bias=d.flag(),
        mamba_proj_bias=d.flag(),
        use_mamba_kernels=False,
    )


def _granite_hybrid(d: Draw) -> dict[str, Any]:
    return d.moe(
        "num_local_experts",
        shared_intermediate_size=d.odd(),
        mamba_n_heads=d.heads,
        mamba_d_head="auto",
        mamba_expand=2,
        mamba_n_groups=1,
        mamba_d_state=d.odd(),
        mamba_d_conv=3,
        mamba_conv_bias=d.flag(),
        mamba_proj_bias=d.flag(),
        attention_bias=d.flag(),
        layer_types=d.kinds("linear_attention", "full_attention"),
    )


def _nemotron(d: Draw) -> dict[str, Any]:
    pattern = "".join(d.pick("M", "E", "*", "-") for _ in range(d.layers))
    return d.v3(
        head_dim=d.head_dim,
        hybrid_override_pattern=pattern,
        ssm_state_size=d.odd(),
        mamba_num_heads=4,
        mamba_head_dim=d.odd(),
        n_groups=2,
        conv_kernel=3,
        use_conv_bias=d.flag(),
        use_bias=d.flag(),
        mlp_bias=d.flag(),
        moe_shared_expert_intermediate_size=d.odd(),
        moe_latent_size=d.pick(None, 13),
    ) | {"n_shared_experts": 1}


def _longcat(d: Draw) -> dict[str, Any]:
    config = d.mla(
        num_layers=d.layers,
        ffn_hidden_size=d.odd(),
        expert_ffn_hidden_size=d.odd(),
        zero_expert_num=d.pick(0, 3),
        moe_topk=2,
        router_bias=d.flag(),
    )
    # the class takes these for other names of its own fields
    aliases = (
        "num_hidden_layers",
        "moe_intermediate_size",
        "intermediate_size",
        "num_experts_per_tok",
    )
    return {k: v for k, v in config.items() if k not in aliases}


def _gemma4(d: Draw) -> dict[str, Any]:
    shared = d.pick(0, 1)
    kinds = d.kinds("sliding_attention", "full_attention")
    if shared:  # a shared layer needs an earlier one of its kind
        kinds = ["sliding_attention", *["full_attention"] * (d.layers - 1)]
    return d.base(
        layer_types=kinds,
        head_dim=d.head_dim,
        global_head_dim=2 * d.head_dim,
        num_global_key_value_heads=d.pick(None, 1),
        attention_k_eq_v=d.flag(),
        attention_bias=d.flag(),
        num_kv_shared_layers=shared,
        use_double_wide_mlp=d.flag(),
        hidden_size_per_layer_input=d.pick(0, 6),
        vocab_size_per_layer_input=51,
        enable_moe_block=d.flag(),
        num_experts=d.experts,
        top_k_experts=2,
        moe_intermediate_size=d.odd(),
    )


def _jetmoe(d: Draw) -> dict[str, Any]:
    return d.moe("num_local_experts", kv_channels=d.pick(6, 10))


def _dbrx(d: Draw) -> dict[str, Any]:
    experts = d.experts
    return {
        "vocab_size": d.odd(31, 99),
        "d_model": d.hidden,
        "n_heads": d.heads,
        "n_layers": d.layers,
        "attn_config": {"kv_n_heads": d.kv, "rope_theta": 1e4},
        "ffn_config": {
            "ffn_hidden_size": d.odd(),
            "moe_num_experts": experts,
            "moe_top_k": d.rng.randint(1, experts),
        },
    }


# model_type -> a random configuration of that family
DRAWS: dict[str, Any] = {
    "llama": lambda d: d.base(
        attention_bias=d.flag(), mlp_bias=d.flag(), **d.maybe(head_dim=d.head_dim)
    ),
    "mistral": lambda d: d.base(**d.maybe(head_dim=d.head_dim)),
    "qwen2": lambda d: d.base(use_sliding_window=d.flag(), sliding_window=7),
    "qwen3": lambda d: d.base(attention_bias=d.flag(), head_dim=d.head_dim),
    "mixtral": lambda d: d.moe("num_local_experts", **d.maybe(head_dim=d.head_dim)),
    "qwen2_moe": lambda d: _qwen(
        d, shared_expert_intermediate_size=d.odd(), **d.maybe(qkv_bias=d.flag())
    ),
    "qwen3_moe": lambda d: _qwen(d, attention_bias=d.flag(), **d.maybe(head_dim=d.head_dim)),
    "qwen3_next": lambda d: _qwen(d, attention_bias=d.flag(), **_delta(d)),
    "qwen3_5_moe_text": lambda d: d.moe(
        moe_intermediate_size=d.odd(), attention_bias=d.flag(), **_delta(d)
    ),
    "olmoe": lambda d: d.moe(attention_bias=d.flag()),
    "flex_olmo": lambda d: d.moe(attention_bias=d.flag()),
    "granitemoe": lambda d: d.moe("num_local_experts", attention_bias=d.flag()),
    "granitemoeshared": lambda d: d.moe(
        "num_local_experts", attention_bias=d.flag(), shared_intermediate_size=d.pick(0, 13)
    ),
    "granitemoe_swa": lambda d: d.moe(
        "num_local_experts", attention_bias=d.flag(), shared_intermediate_size=d.pick(0, 13)
    ),
    "granitemoehybrid": _granite_hybrid,
    "phimoe": lambda d: d.moe("num_local_experts", attention_bias=d.flag(), lm_head_bias=d.flag()),
    "hunyuan_v1_moe": lambda d: d.moe(attention_bias=d.flag(), head_dim=d.head_dim, moe_topk=1),
    "mellum": lambda d: d.moe(
        moe_intermediate_size=d.odd(),
        attention_bias=d.flag(),
        head_dim=d.head_dim,
        mlp_layer_types=d.kinds("dense", "sparse"),
    ),
    "gpt_oss": lambda d: d.moe(
        "num_local_experts", **d.maybe(attention_bias=d.flag(), head_dim=d.head_dim)
    ),
    "llama4_text": lambda d: d.moe(
        "num_local_experts",
        intermediate_size_mlp=d.odd(),
        head_dim=d.head_dim,
        attention_bias=d.flag(),
        interleave_moe_layer_step=d.pick(1, 2, 3),
    ),
    "glm4_moe": lambda d: d.v3(use_qk_norm=d.flag(), **d.maybe(head_dim=d.head_dim)),
    "dots1": lambda d: d.v3(sliding_window=9, max_window_layers=2),
    "minimax_m2": lambda d: d.moe("num_local_experts", **d.maybe(head_dim=d.head_dim)),
    "minimax_m3_vl_text": lambda d: d.moe(
        "num_local_experts",
        head_dim=d.head_dim,
        dense_intermediate_size=d.odd(),
        shared_intermediate_size=d.odd(),
        index_n_heads=2,
        index_head_dim=6,
        mlp_layer_types=d.kinds("dense", "sparse"),
        layer_types=d.kinds("minimax_m3_sparse", "full_attention"),
    ),
    "hy_v3": lambda d: d.moe(
        moe_intermediate_size=d.odd(),
        num_shared_experts=2,
        attention_bias=d.flag(),
        mlp_bias=d.flag(),
        **d.maybe(mlp_layer_types=d.kinds("dense", "sparse")),
    ),
    "afmoe": lambda d: d.moe(
        moe_intermediate_size=d.odd(),
        num_dense_layers=d.pick(0, 1, 2),
        attention_bias=d.flag(),
        **d.maybe(num_shared_experts=d.pick(1, 3), head_dim=d.head_dim),
    ),
    "exaone_moe": lambda d: d.moe(
        moe_intermediate_size=d.odd(),
        num_shared_experts=d.pick(1, 2),
        n_group=1,
        topk_group=1,
        **d.maybe(first_k_dense_replace=d.pick(0, 2), head_dim=d.head_dim),
    ),
    "solar_open": lambda d: d.v3(head_dim=d.head_dim),
    "mimo_v2_flash": lambda d: d.v3(
        head_dim=d.head_dim,
        v_head_dim=d.odd(),
        **d.maybe(
            layer_types=d.kinds("full_attention", "sliding_attention"),
            mlp_layer_types=d.kinds("dense", "sparse"),
        ),
    ),
    "ernie4_5_moe": lambda d: d.base(
        moe_num_experts=d.experts,
        moe_k=2,
        moe_intermediate_size=d.odd(),
        use_bias=d.flag(),
        moe_num_shared_experts=d.pick(0, 1, 2),
        moe_layer_start_index=d.pick(0, 1),
        moe_layer_end_index=d.pick(-1, 2),
        moe_layer_interval=d.pick(1, 2),
    ),
    "laguna": lambda d: d.moe(
        moe_intermediate_size=d.odd(),
        attention_bias=d.flag(),
        head_dim=d.head_dim,
        shared_expert_intermediate_size=d.odd(),
        sliding_window=8,
        **d.maybe(num_attention_heads_per_layer=[d.kv * d.pick(1, 2) for _ in range(d.layers)]),
    ),
    "cohere2_moe": lambda d: d.moe(
        attention_bias=d.flag(),
        head_dim=d.head_dim,
        num_shared_experts=d.pick(0, 2),
        **d.maybe(first_k_dense_replace=2, prefix_dense_intermediate_size=17),
    ),
    "deepseek_v2": lambda d: d.mla(mlp_bias=d.flag()) | d.pick({}, {"q_lora_rank": None}),
    "deepseek_v3": lambda d: d.mla() | d.pick({}, {"q_lora_rank": None}),
    "deepseek_v32": lambda d: d.mla(mlp_bias=d.flag(), index_n_heads=2, index_head_dim=16),
    "glm_moe_dsa": lambda d: d.mla(
        mlp_bias=d.flag(),
        index_n_heads=2,
        index_head_dim=16,
        **d.maybe(index_topk_freq=2, indexer_types=["full", *d.kinds("full", "shared")[1:]]),
    ),
    "glm4_moe_lite": lambda d: d.mla(**d.maybe(mlp_layer_types=d.kinds("dense", "sparse"))),
    "mistral4": lambda d: d.mla(),
    "axk1": lambda d: d.mla(),
    "longcat_flash": _longcat,
    "deepseek_v4": _v4,
    "minimax": lambda d: d.moe("num_local_experts"),
    "jamba": _jamba,
    "lfm2_moe": lambda d: d.moe(
        moe_intermediate_size=d.odd(),
        num_dense_layers=d.pick(0, 1, 3),
        conv_bias=d.flag(),
        conv_L_cache=3,
        layer_types=d.kinds("conv", "full_attention"),
    ),
    "kimi_linear": lambda d: (
        d.mla(
            num_experts=d.experts,
            num_experts_per_token=2,
            num_shared_experts=2,
            linear_head_dim=10,
            linear_num_heads=3,
            linear_conv_kernel_dim=3,
        )
        | {"q_lora_rank": d.pick(None, 9)}
    ),
    "bailing_hybrid": lambda d: d.mla(
        num_experts=d.experts,
        num_experts_per_token=2,
        num_shared_experts=2,
        head_dim=10,
        layer_group_size=d.pick(2, 3),
        short_conv_kernel_size=3,
    ),
    "nemotron_h": _nemotron,
    "dbrx": _dbrx,
    "gemma4_text": _gemma4,
    "jetmoe": _jetmoe,
    "switch_transformers": _switch,
    "nllb-moe": _nllb,
}
