"""From a path to a model that runs."""

import os
from dataclasses import replace
from typing import Any

from . import checkpoint, models, ops
from .config import Config
from .gguf_tokenizer import load_gguf_tokenizer
from .models.formats import Formats
from .models.reader import Reader
from .models.tensor_reader import INTEGER_DTYPES, Placed
from .nn import EncoderDecoder, Model
from .ops.paged_experts import Pages
from .packed_loading import load_packed
from .saving import save
from .saving.bar import Bar
from .tokenizer import load_tokenizer

KV_FORMATS = ("f32", "bf16", "f16", "int8")


def load(
    path: str | os.PathLike[str],
    format: str | None = None,
    router_format: str = "f32",
    threads: int | None = None,
    max_memory: int | None = None,
    *,
    kv_format: str = "f32",
    progress: bool | None = None,
) -> Model:
    """The model in a Hugging Face directory or a GGUF file, packed while it is read.

    `path`: a directory with config.json and safetensors, a `.gguf` file, or the first of a split
    set (`-00001-of-`).

    `format`: one of `ops.pack`'s for all matrices; None keeps what the file holds. Below 8 bits
    the head takes 8: int8, or q8_0 beside ggml's types. `router_format`: routers stay in float32,
    since a rounded score chooses other experts. `threads` is set for the whole process.
    `max_memory`: bytes that the weights may take; where that is less than all of them, experts stay
    in the file and are read when a token chooses them (least recently used go first), with the same
    results.
    `kv_format`: what sequences keep of their tokens, "f32", "bf16", "f16" or "int8" (a scale for
    each head's row): an attribute of the model, for sequences to come.
    `progress`: a bar on stderr; None shows it on a terminal when loading takes longer than two
    seconds.

    FileError for files that are missing, broken, or do not fit each other: the message names
    the field, the tensor or the file. Tensors are read one at a time. MemoryError, with the
    arithmetic, where one token's experts of one layer do not fit beside the other weights.
    """
    formats = Formats.of(format, router_format)
    for name in (format, router_format):
        if name is not None and name not in ops.format_names():
            known = ", ".join(ops.format_names())
            raise ValueError(f"[load] format {name!r}; one of {known} is required")
    if kv_format not in KV_FORMATS:
        raise ValueError(
            f"[load] kv_format {kv_format!r}; one of {', '.join(KV_FORMATS)} is required"
        )
    if threads is not None:
        ops.set_num_threads(threads)
    if max_memory is not None and (type(max_memory) is not int or max_memory < 1):
        raise ValueError(f"[load] max_memory {max_memory!r}; a number of bytes is required")
    folder = os.fsdecode(path)
    if checkpoint.is_packed(folder):
        if format is not None or router_format != "f32" or max_memory is not None:
            raise ValueError(
                f"[load] {folder} is packed already; it is loaded as it is, without format, "
                "router_format and max_memory"
            )
        model, config = load_packed(folder)
        model.source, model.kv_format = folder, kv_format
        model.tokenizer = load_tokenizer(folder)
        model.end_ids = _end_ids(folder, config, model.vocab_size)
        model._saver = save
        return model
    file = checkpoint.open_model(folder)
    try:
        model = _read(file, folder, formats, max_memory, progress)
    except BaseException:
        file.close()
        raise
    model.kv_format = kv_format
    if model.pages is None:
        file.close()
    return model


def _read(
    file: checkpoint.Checkpoint,
    folder: str,
    formats: Formats,
    max_memory: int | None,
    progress: bool | None,
) -> Model:
    if file.format == "gguf":
        config = Config(checkpoint.read_gguf_config(file), file.path)
    else:
        config = Config(checkpoint.read_config(folder), os.path.join(folder, "config.json"))
    weights = checkpoint.open_weights(file, config)
    pages = None if max_memory is None else Pages()
    with Bar("loading", file.nbytes, progress, "B") as bar:
        header = sum(source.bytes_read for source in file.sources)

        def advance() -> None:
            bar.reach(sum(source.bytes_read for source in file.sources) - header)

        reader = Reader(weights, formats, advance, pages=pages, max_memory=max_memory)
        model = models.build(config, reader)
        if pages is not None and max_memory is not None:
            if _all_fit(model, pages, max_memory):
                pages = None
                reader = Reader(weights, formats, advance)
                model = models.build(config, reader)
            else:
                _share_out(model, pages, max_memory)
    if file.format == "gguf":
        model.tokenizer = load_gguf_tokenizer(file)
        model.end_ids = _end_ids(None, config, model.vocab_size)
    else:
        model.tokenizer = load_tokenizer(folder)
        model.end_ids = _end_ids(folder, config, model.vocab_size)
        if isinstance(model, EncoderDecoder):
            start = _start_id(folder, config, model.vocab_size)
            model.start_id = model.start_id if start is None else start
    model.source = folder
    model.pages = pages
    model.placed = [_unwrapped(placed) for placed in reader.placed]
    model.passed_over = [_text_name(name) for name in reader.passed_over]
    model.outline = outline_of(weights)
    if any(_text_name(placed.piece.name) != placed.piece.name for placed in reader.placed):
        used = {*reader.passed_over, *(placed.piece.name for placed in reader.placed)}
        kept = sorted(used & model.outline.keys())
        model.outline = {_text_name(name): model.outline[name] for name in kept}
    model.grouping = "gguf" if file.format == "gguf" else "hf"
    model._saver = save
    return model


# How checkpoints with pictures call their text model; saved it is one of its own.
_WRAPPERS = ("model.language_model.", "language_model.model.", "language_model.")


def _text_name(name: str) -> str:
    for start in _WRAPPERS:
        if name.startswith(start):
            kept = "" if start == "language_model." else "model."
            return kept + name.removeprefix(start)
    return name


def _unwrapped(placed: Placed) -> Placed:
    name = _text_name(placed.piece.name)
    if name == placed.piece.name:
        return placed
    return replace(placed, piece=replace(placed.piece, name=name), bank=_text_name(placed.bank))


def _all_fit(model: Model, pages: Pages, max_memory: int) -> bool:
    experts = sum(part.count * part.expert_bytes for part in pages.layers)
    return sum(model.memory().values()) + experts <= max_memory


def _share_out(model: Model, pages: Pages, max_memory: int) -> None:
    """Leave the experts what the rest does not take; MemoryError if a token's do not fit."""
    others = sum(model.memory().values())
    pages.budget = max_memory - others
    chosen = {id(part): 1 for part in pages.layers}
    for n in model.moe_layers:
        moe = model.layers[n].moe
        if moe is not None and moe.gate is not None:
            chosen[id(moe.experts)] = moe.gate.k
    for part in pages.layers:
        k = chosen[id(part)]
        need = k * part.expert_bytes
        if need > pages.budget:
            raise MemoryError(
                f"[load] max_memory {max_memory}: {others} bytes of other weights, and "
                f"{k} experts of {part.expert_bytes} bytes for a token in one layer, take "
                f"{others + need} bytes; at least these are required"
            )


def outline_of(weights: checkpoint.Weights) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of every tensor; one that is stored quantised counts as bfloat16."""
    outline = {}
    for name in weights:
        info = weights.info(name)
        dtype = "BF16"
        if info.scheme == "plain":
            dtype = weights.checkpoint.info(info.parts["weight"]).dtype
        kept = dtype in checkpoint.KEPT_DTYPES or dtype in INTEGER_DTYPES
        outline[name] = (dtype if kept else "BF16", info.shape)
    return outline


def demo_model(format: str | None = None, **options: Any) -> Model:
    """The small DeepSeek-V3 inside the package; options are those of `load`."""
    from .demo import demo_path

    return load(demo_path(), format, **options)


def _settings(folder: str | None, config: Config) -> list[Config]:
    """Where settings of a generation stand: generation_config.json, then config.json."""
    sources = [config]
    if folder is not None and checkpoint.has_file(folder, "generation_config.json"):
        name = os.path.join(folder, "generation_config.json")
        sources.insert(0, Config(checkpoint.read_json(folder, "generation_config.json"), name))
    return sources


def _end_ids(folder: str | None, config: Config, vocab_size: int) -> tuple[int, ...]:
    """Tokens that end a generation."""
    for source in _settings(folder, config):
        value = source.get("eos_token_id")
        if value is None:
            continue
        ids: list[Any] = value if isinstance(value, list) else [value]
        if not all(type(token) is int for token in ids):
            raise source.error("eos_token_id", "a token id or a list of them")
        # Ids beyond the vocabulary cannot come; some configurations carry them.
        return tuple(token for token in ids if 0 <= token < vocab_size)
    return ()


def _start_id(folder: str, config: Config, vocab_size: int) -> int | None:
    """The token that an encoder-decoder's answers begin with, None where no file says so."""
    for source in _settings(folder, config):
        if source.get("decoder_start_token_id") is not None:
            return source.size("decoder_start_token_id", least=0, most=vocab_size - 1)
    return None
