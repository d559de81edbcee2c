"""`mk.quantize`: a model or a checkpoint in fewer bits, layer by layer."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import loading, ops, packed_loading
from ..checkpoint import TENSOR, PackedWriter
from ..checkpoint.packed import NOTES, Item
from ..nn import Block, Model
from ..nn.parts import held, replaced
from ..ops import PackedWeight
from ..saving import save_directory, save_gguf
from ..saving.bar import Bar
from .blocks import BlockQuantiser, Inputs
from .layerwise import WINDOW, Stream, Texts, tapped, windows_of
from .notes import Notes
from .recipe import Place, Recipe, RecipeLike, places_of
from .rounding import Options

LAYOUTS = ("moekit", "gptq", "gguf")
_TABLE_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def quantize(
    model_or_path: Model | str | os.PathLike[str],
    recipe: RecipeLike,
    calibration: Texts | None = None,
    method: str = "rtn",
    *,
    out: str | os.PathLike[str] | None = None,
    layout: str = "moekit",
    act_order: bool = True,
    damp: float = 0.01,
    min_tokens: int = 32,
    all_experts: bool = False,
    window: int = WINDOW,
    overwrite: bool = False,
    progress: bool | None = None,
) -> Model:
    """The model with its weights in the formats of `recipe` (see `Recipe`).

    `calibration`: texts or lists of ids, cut into windows; they run through the model layer by
    layer, each layer seeing what the quantised ones before it give. `method`: `rtn` rounds to
    nearest with the format's own error-minimising scales; `gptq` (arXiv 2210.17323) needs
    calibration, weighs each expert's inputs by the router's weights, and keeps rounding to nearest
    where that leaves the smaller error; `awq` (arXiv 2306.00978) needs it too, scales the channels
    of norms against those of gate, up and router, and of up against down, and rounds to nearest.
    `act_order`, `damp`, `min_tokens` and `all_experts` are explained in `Options`.

    A given model stays as it was and shares what did not change. A checkpoint's path is loaded
    as it is; then a layer's source is dropped as soon as the layer is done, so that the source and
    one layer are all that has to fit in memory (and, for calibration, the hidden states of its
    tokens). `out`: a new directory in moekit's own layout, written layer by layer; after Ctrl-C or
    a kill the same call goes on where it was, after any other error nothing is left.
    `layout="gptq"` writes a directory as transformers and vLLM read it (four-bit symmetric
    integers; other formats become 16 bits), `"gguf"` a file, both when all is done.
    `model.quantization` tells what was done. `progress`: bars on stderr; None shows them on a
    terminal when the work takes longer than two seconds.

    ValueError for recipes, methods and calibration that do not fit; nothing is written then.
    """
    wanted = Recipe.of(recipe)
    if layout not in LAYOUTS:
        raise ValueError(f"[quantize] layout {layout!r}; one of {', '.join(LAYOUTS)} is required")
    options = Options(method, act_order, damp, min_tokens, all_experts)
    if method != "rtn" and calibration is None:
        raise ValueError(f"[quantize] method {method!r} without calibration; texts are required")
    if wanted.budget is not None and calibration is None:
        raise ValueError("[quantize] a budget without calibration; texts are required")
    own = isinstance(model_or_path, (str, os.PathLike))
    model: Any = loading.load(model_or_path) if own else model_or_path  # type: ignore[arg-type]
    if not isinstance(model, Model):
        raise TypeError(f"[quantize] {type(model).__name__}; a decoder is required")
    if model.pages is not None:
        raise ValueError("[quantize] a model with max_memory; one whose weights are in memory is")
    if calibration is not None and model.encodes_prompt:
        raise ValueError(
            "[quantize] calibration for an encoder-decoder; a recipe without it is required"
        )
    wanted.check(model)
    windows = None if calibration is None else windows_of(model, calibration, window)
    if wanted.budget is not None:
        from .budget import within_budget

        assert windows is not None
        wanted = within_budget(model, wanted, windows, options, progress)
    notes = Notes(
        {
            "recipe": wanted.to_dict(),
            **dataclasses.asdict(options),
            "calibration_tokens": 0 if windows is None else sum(map(len, windows)),
        }
    )
    writer: AbstractContextManager[PackedWriter | None] = nullcontext()
    if out is not None and not model.outline:
        raise ValueError("[quantize] out= for a model that was not loaded; mk.load is required")
    if out is not None and model.assembled:
        raise ValueError(
            "[quantize] out= for an assembled model; no file says which layers it has: one with "
            "its family's own is required"
        )
    if out is not None and layout != "moekit" and os.path.lexists(out) and not overwrite:
        raise ValueError(f"[quantize] {os.fsdecode(out)} is there already; a new path is required")
    if out is not None and layout == "moekit":
        writer = PackedWriter(out, _key(model, notes, windows), overwrite=overwrite)
    with writer as file:
        run = _Run(model, wanted, options, notes, windows, file, own)
        result = run.result(progress)
        if file is not None:
            file.finish(
                model.outline,
                model.grouping,
                _config(model),
                model.source,
                notes.to_dict(),
                edited=not model.placed,
            )
    if out is not None:
        _save(result, os.fsdecode(out), layout, progress)
    return result


def _save(model: Model, out: str, layout: str, progress: bool | None) -> None:
    if layout == "gptq":
        save_directory(model, out, progress, gptq=True)
    elif layout == "gguf":
        save_gguf(model, out, progress)


class _Run:
    def __init__(
        self,
        model: Model,
        recipe: Recipe,
        options: Options,
        notes: Notes,
        windows: Sequence[npt.NDArray[np.int32]] | None,
        file: PackedWriter | None,
        own: bool,
    ) -> None:
        self._model = model
        self._recipe = recipe
        self._options = options
        self._notes = notes
        self._file = file
        self._own = own
        self._bar: Bar | None = None
        self._quantise = BlockQuantiser(recipe, options, notes, self._advance)
        self._stream = None if windows is None else Stream(model, windows)
        self._placed = list(model.placed)
        # What layers share is written with the first of them.
        self._paths = {path for path, _ in held(model)}
        self._read_only = _read_only(model)
        self._by_layer: dict[int, list[Place]] = {}
        for place in places_of(model):
            self._by_layer.setdefault(place.layer, []).append(place)

    def result(self, progress: bool | None) -> Model:
        matrices = sum(p.experts for places in self._by_layer.values() for p in places)
        with Bar("quantising", matrices, progress, " matrices") as self._bar:
            return self._made()

    def _advance(self, matrices: int) -> None:
        if self._bar is not None:
            self._bar.advance(matrices)

    def _made(self) -> Model:
        layers = list(self._model.layers)
        for n in range(len(layers)):
            layers[n] = self._layer(n)
            if self._own:
                # Nobody else has the source: its memory goes as soon as the layer is done.
                self._model.layers[n] = layers[n]
                self._model.placed = self._placed
                self._by_layer.pop(n, None)
        frame = replaced(self._model, {})
        result: Model = self._rest(frame, layers)
        result.quantization = self._notes
        result.placed = self._placed
        return result

    def _layer(self, n: int) -> Any:
        source = self._model.layers[n]
        block = self._finished(n, source, f"layers.{n}.")
        if block is None:
            mark = self._notes.mark()
            inputs = Inputs()
            if self._stream is not None:
                tap, linears, feeds = tapped(source)
                self._stream.through(tap, n)
                inputs = Inputs(linears, feeds)
                if source.moe is not None:
                    counts = inputs.of(source.moe).counts(source.moe.experts.count)
                    self._notes.tokens[n] = counts.tolist()
            part = source
            if self._options.method == "awq" and isinstance(source, Block):
                from .awq import scaled

                part, inputs, places = scaled(source, inputs, self._places(n), self._recipe)
                block = self._quantise(part, places, inputs)
            else:
                block = self._quantise(part, self._places(n), inputs)
            self._write(n, block, f"layers.{n}.", mark)
        if self._stream is not None:
            self._stream.states = self._stream.through(block, n)
        self._exchange(source, block)
        return block

    def _exchange(self, source: Any, result: Any) -> None:
        """What the file's pieces became. At once: later the ids may be those of other objects."""
        new = _pairs(source, result)
        self._placed = [
            dataclasses.replace(place, weight=new[id(place.weight)])
            if id(place.weight) in new
            else place
            for place in self._placed
        ]

    def _places(self, n: int) -> list[Place]:
        return self._by_layer.get(n, [])

    def _rest(self, model: Model, layers: list[Any]) -> Any:
        """Embedding, final norm and head, whatever else the family has."""
        source = self._model
        frame = _without_layers(model)
        part = len(layers)
        done = self._finished(part, frame, "")
        if done is None:
            mark = self._notes.mark()
            done = self._quantise(frame, self._places(-1), Inputs())
            dtype = self._recipe.table_dtype()
            if dtype is not None:
                table = source.embedding.astype(_numpy_dtype(dtype), copy=False)
                done = replaced(done, {id(source.embedding): table})
            self._write(part, done, "", mark)
        self._exchange(frame, done)
        if done is frame:
            done = _without_layers(model)
        done.layers = layers
        return done

    # -- files -----------------------------------------------------------------------------

    def _finished(self, part: int, source: Any, prefix: str) -> Any:
        """What an earlier run has written of this part, or None."""
        if self._file is None or self._file.finished(part) is None:
            return None
        key = part if part < len(self._model.layers) else -1
        self._advance(sum(place.experts for place in self._places(key)))
        with self._file.open(part) as reader:
            notes = json.loads(bytes(reader.read(NOTES)))
            exchanges = {
                id(value): packed_loading.unpacked(reader, prefix + path)
                for path, value in held(source)
                if prefix + path in reader.entries
            }
        self._notes.take_over(notes)
        self._notes.tokens.update({int(n): counts for n, counts in notes["tokens"].items()})
        return replaced(source, exchanges)

    def _write(self, part: int, block: Any, prefix: str, mark: tuple[int, int]) -> None:
        if self._file is None:
            return
        noted = self._notes.part(mark)
        noted["tokens"] = {str(n): c for n, c in self._notes.tokens.items() if n == part}
        items = [item for item in _items(block, prefix) if item[0] in self._paths]
        if not prefix:
            items += self._read_only
        self._file.write(part, [*items, _noted(noted)])


def _read_only(model: Model) -> list[Item]:
    """Tensors of the checkpoint that parts made something else of, for saving them again."""
    known = set()
    for _, value in held(model):
        known |= {id(value), id(value.base if isinstance(value, np.ndarray) else value)}
    return [
        (TENSOR + place.piece.name, "", place.weight.shape, [place.weight])
        for place in model.placed
        if isinstance(place.weight, np.ndarray) and id(place.weight) not in known
    ]


def _noted(notes: dict[str, Any]) -> Item:
    data = np.frombuffer(json.dumps(notes).encode(), np.uint8)
    return NOTES, "", data.shape, [data]


def _items(part: Any, prefix: str) -> Iterator[Item]:
    for path, value in held(part):
        if isinstance(value, PackedWeight):
            panels = [value.expert_bytes(e) for e in range(value.core.experts)]
            yield prefix + path, value.format, value.shape, panels
        else:
            yield prefix + path, "", value.shape, [value]


def _pairs(source: Any, result: Any) -> dict[int, Any]:
    """What stands in `result` where `source` has something else."""
    before, after = dict(held(source)), dict(held(result))
    return {id(value): after[path] for path, value in before.items() if after[path] is not value}


def _without_layers(model: Model) -> Model:
    frame = object.__new__(type(model))
    frame.__dict__.update(model.__dict__)
    frame.layers = []
    return frame


def _numpy_dtype(name: str) -> Any:
    import ml_dtypes

    return ml_dtypes.bfloat16 if name == "bf16" else np.dtype(_TABLE_DTYPES[name])


def _config(model: Model) -> dict[str, object]:
    """The fields of config.json, without how an earlier checkpoint was quantised."""
    return {key: value for key, value in model.config.items() if key != "quantization_config"}


def _key(model: Model, notes: Notes, windows: Sequence[npt.NDArray[np.int32]] | None) -> str:
    """The same for the same work: what an interrupted run may be continued by."""
    digest = hashlib.sha256()
    said = [model.source, _config(model), notes.options, sorted(model.outline.items())]
    digest.update(json.dumps([*said, ops.format_names()], default=str).encode())
    if model.source is not None:
        for entry in sorted(_files(model.source)):
            digest.update(repr(entry).encode())
    for window in windows or []:
        digest.update(window.tobytes() + b"|")
    return digest.hexdigest()


def _files(source: str) -> Iterator[tuple[str, int, int]]:
    paths = [source]
    if os.path.isdir(source):
        paths = [entry.path for entry in os.scandir(source)]
    for path in paths:
        status = os.stat(path)
        yield path, status.st_size, status.st_mtime_ns
