"""What tests of the planner plan."""

import importlib
from typing import Any

#: A small Mixtral whose parameters are counted by hand.
MIXTRAL: dict[str, Any] = {
    "model_type": "mixtral",
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": False,
}


def model_of(model_type: str, config: dict[str, Any], device: str) -> Any:
    """The transformers model of `config` on a device, whatever class carries its head."""
    import torch
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    parsed = CONFIG_MAPPING[model_type](**config)
    if type(parsed) in MODEL_FOR_CAUSAL_LM_MAPPING:
        chosen = MODEL_FOR_CAUSAL_LM_MAPPING[type(parsed)]
    else:
        folder = type(parsed).__module__.split(".")[2]
        module = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
        names = [n for n in dir(module) if n.endswith(("ForCausalLM", "ForConditionalGeneration"))]
        chosen = getattr(module, names[0])
    with torch.device(device):
        return chosen(parsed)
