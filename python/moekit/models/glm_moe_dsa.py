"""GLM-5: DeepSeek-V3.2's architecture, with layers that read what an earlier layer has selected.

`indexer_types` says which layers have an indexer ("full") and which use the selection of the last
one before ("shared"). The indexer rotates interleaved pairs, as the attention does.
"""

from ..config import Config
from ..nn import Indexer, Model
from .base import layer_count
from .latent import grouped_mixture, latent_attention, latent_decoder, own_indexer
from .reader import Reader

# What a file may leave out, as transformers fills it in.
_DEFAULTS = {
    "num_experts_per_tok": 8,
    "routed_scaling_factor": 2.5,
    "index_topk": 2048,
    "index_head_dim": 128,
    "index_n_heads": 32,
}
_KINDS = {"F": "full", "S": "shared", "full": "full", "shared": "shared"}


def build(config: Config, reader: Reader) -> Model:
    """The model of a GLM-5 checkpoint."""
    config = config.with_defaults(**_DEFAULTS)
    kinds = _indexer_types(config, layer_count(config))
    indexer, selected = own_indexer(config, interleaved=True), config.size("index_topk")

    def selection(n: int, layer: Reader) -> Indexer | int:
        return indexer(layer) if kinds[n] == "full" else selected

    attention = latent_attention(config, selection=selection)
    mixture = grouped_mixture(config)
    return latent_decoder(config, reader, attention, mixture, first_dense=3, eps=1e-5)


def _indexer_types(config: Config, layers: int) -> list[str]:
    """ "full" or "shared" for each layer: as a list, a pattern ("FSSF"), or a frequency."""
    name = "indexer_types" if config.get("indexer_types") is not None else "index_topk_pattern"
    listed = config.get(name)
    if listed is None:
        every = max(config.size("index_topk_freq", default=1, least=0), 1)
        offset = config.size("index_skip_topk_offset", default=2, least=0)
        return ["shared" if max(n - offset + 1, 0) % every else "full" for n in range(layers)]
    wanted = f"full or shared for each of {layers} layers, the first one full"
    if not isinstance(listed, list | str) or not all(
        isinstance(kind, str) and kind in _KINDS for kind in listed
    ):
        raise config.error(name, wanted)
    kinds = [_KINDS[kind] for kind in listed]
    config.require(len(kinds) == layers and kinds[0] == "full", name, wanted)
    return kinds
