"""Tiny random checkpoints of the families, made by transformers, with the odd sizes that kernels
trip over; and transformers' own answers to compare with."""

import copy
import json
from pathlib import Path
from typing import Any

import grouped_families
import latent_families
import numpy as np
import recurrent_families
import torch
import transformers

torch.set_num_threads(1)

# Sizes that divide by nothing convenient, on purpose.
COMMON: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"intermediate_size": 40, "num_local_experts": 5, "rms_norm_eps": 1e-5},
    "qwen3_moe": {
        "intermediate_size": 56,
        "moe_intermediate_size": 40,
        "num_experts": 5,
        "head_dim": 20,
        "norm_topk_prob": True,
    },
    "deepseek_v2": {
        "num_key_value_heads": 3,
        "intermediate_size": 56,
        "moe_intermediate_size": 40,
        "n_routed_experts": 5,
        "n_shared_experts": 2,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 22,
        "q_lora_rank": 26,
        "qk_nope_head_dim": 14,
        "qk_rope_head_dim": 6,
        "v_head_dim": 18,
    },
    "deepseek_v3": {
        "num_key_value_heads": 3,
        "intermediate_size": 56,
        "moe_intermediate_size": 40,
        "n_routed_experts": 5,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 22,
        "q_lora_rank": 26,
        "qk_nope_head_dim": 14,
        "qk_rope_head_dim": 6,
        "v_head_dim": 18,
        "num_nextn_predict_layers": 0,
    },
}


# Where AutoModelForCausalLM does not know a family.
CLASSES = {"mistral4": "Mistral4ForCausalLM"}
# Every family that transformers can make, by kind.
TABLES = (FAMILIES, grouped_families.FIELDS, latent_families.FIELDS, recurrent_families.FIELDS)


def tiny_config(family: str, **changes: Any) -> Any:
    """A small configuration of a family."""
    own = next(table[family] for table in TABLES if family in table)
    # Configurations write into what they are given.
    fields = {**copy.deepcopy(COMMON), **copy.deepcopy(own), **copy.deepcopy(changes)}
    return transformers.AutoConfig.for_model(family, **fields)


def tiny_model(family: str, seed: int = 0, **changes: Any) -> Any:
    """A random float32 model of a family."""
    kind = CLASSES.get(family, "AutoModelForCausalLM")
    return random_model(tiny_config(family, **changes), seed, kind)


def random_model(config: Any, seed: int, kind: str) -> Any:
    """A random float32 model; norms, biases and correction biases random as well."""
    torch.manual_seed(seed)
    maker = getattr(transformers, kind)
    make = maker.from_config if kind.startswith("Auto") else maker._from_config
    model = make(config, attn_implementation="eager")
    model.set_experts_implementation("eager")
    model.eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                # Around 1, or around 0 where a family adds the 1 itself.
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif name.endswith(".bias"):
                parameter.copy_(0.1 * torch.randn_like(parameter))
            elif parameter.unique().numel() == 1 or name.endswith(("A_log", "dt_bias", ".D")):
                # Zeros, ones and rows alike that an initialisation leaves would hide a forgotten
                # term.
                parameter.add_(0.3 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith(("e_score_correction_bias", "expert_bias", "layer_scalar")):
                buffer.add_(0.3 * torch.randn_like(buffer))
            elif name.endswith("tid2eid"):
                rows = [torch.randperm(config.n_routed_experts) for _ in range(len(buffer))]
                buffer.copy_(torch.stack(rows)[:, : buffer.shape[1]])
    return model


def save(model: Any, path: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    """Write the checkpoint in `dtype`; the model takes the values that the file holds."""
    # Not model.to(dtype) and back: that would round the rotary frequencies, which no file holds.
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(tensor.to(dtype))
    copy.deepcopy(model).to(dtype).save_pretrained(path, **options)
    return path


def rewrite_config(path: Path, **changes: Any) -> None:
    """Change fields of a saved config.json; None removes one."""
    file = path / "config.json"
    fields = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: v for key, v in fields.items() if v is not None}))


def their_logits(model: Any, ids: list[int]) -> np.ndarray:
    """float32 [T, V] of transformers."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().numpy()


def their_experts(model: Any, ids: list[int]) -> list[np.ndarray]:
    """For each MoE layer the sorted expert ids [T, K] that transformers routes to."""
    found: list[np.ndarray] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        if isinstance(output, tuple) and len(output) == 2:  # Llama 4: scores, 0 for the others
            chosen = output[0].topk(model.config.num_experts_per_tok)[1]
        elif isinstance(output, tuple) and len(output) == 5:  # JetMoE: sorted by expert, logits
            chosen = output[4].topk(model.config.num_experts_per_tok)[1]
        elif isinstance(output, tuple):
            chosen = output[2]
        else:  # DBRX, whose router gives logits
            chosen = output.topk(model.config.ffn_config.moe_top_k)[1]
        found.append(np.sort(chosen.numpy().reshape(len(ids), -1), axis=1))

    hooks = [
        module.register_forward_hook(keep)
        for name, module in model.named_modules()
        if type(module).__name__.endswith(("Router", "Gate", "TopKGating"))
        and not type(module).__name__.endswith("ForgetGate")
        and ".self_attention." not in name  # JetMoE's attention has experts of its own
    ]
    their_logits(model, ids)
    for hook in hooks:
        hook.remove()
    return found


def their_greedy(model: Any, ids: list[int], count: int) -> list[int]:
    """New tokens of transformers' greedy generation, which uses its cache."""
    out = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    return out[0, len(ids) :].tolist()


CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_CORPUS = [
    "the cat sat on the mat and the dog sat on the log",
    "def sort(items): return sorted(items)",
    "Übergänge, äußere Größe, naïve façade, 你好世界, 🙂🙃",
]


def save_tokenizer(path: Path, vocab_size: int = 320, **config: Any) -> Any:
    """Train a byte-level BPE, write it as transformers does, and return transformers' own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|end|>", "<|begin|>", "<|user|>", "<|assistant|>", "<|system|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_CORPUS * 4, trainer)
    fields = {"eos_token": "<|end|>", "bos_token": "<|begin|>", **config}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **fields)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(path)
    return transformers.AutoTokenizer.from_pretrained(path)
