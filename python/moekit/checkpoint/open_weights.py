"""From an open checkpoint to its weights by Hugging Face's names."""

from collections.abc import Mapping

from .gguf_weights import GgufWeights
from .hf_weights import HfWeights
from .tensors import Checkpoint
from .weights import Weights


def open_weights(checkpoint: Checkpoint, config: Mapping[str, object]) -> Weights:
    """The weights of `checkpoint` as `config` (its config.json, or `read_gguf_config`) says.

    FileError for a scheme that is not read, a part that is missing, or shapes that disagree.
    """
    if checkpoint.format == "gguf":
        return GgufWeights(checkpoint, config)
    return HfWeights(checkpoint, config)
