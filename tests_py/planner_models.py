"""What tests of the planner plan."""

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
