"""The safetensors header, every number of it checked before use.

Layout (https://github.com/huggingface/safetensors#format): 8 bytes little-endian header length,
a JSON object from tensor name to dtype, shape and data_offsets, then one buffer that the tensors
fill without gap or overlap up to the end of the file.
"""

from typing import cast

from .source import SourceFile, quoted
from .storage import MAX_BYTES, MAX_DIMS, SAFETENSORS
from .strict_json import is_text, parse_object
from .tensors import Checkpoint, TensorInfo

# The format's own limit.
MAX_HEADER_BYTES = 100_000_000
_FIELDS = {"dtype", "shape", "data_offsets"}


def open_safetensors(source: SourceFile) -> Checkpoint:
    """The tensors of one file; takes over `source` and closes it when the header is refused."""
    try:
        tensors, metadata = read_header(source)
    except BaseException:
        source.close()
        raise
    return Checkpoint(source.path, "safetensors", [source], tensors, metadata)


def read_header(source: SourceFile) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Tensors in the order of their data, and `__metadata__`; FileError for a broken file."""
    if source.size < 8 + 2:
        raise source.error(f"has {source.size} bytes; a header takes at least 10")
    length = int.from_bytes(source.read(0, 8), "little")
    if length > MAX_HEADER_BYTES:
        raise source.error(f"header of {length} bytes; at most {MAX_HEADER_BYTES} are allowed")
    data_begin = 8 + length
    if data_begin > source.size:
        raise source.error(f"header ends at {data_begin}, file ends at {source.size}")
    text = source.read(8, length)
    if text[:1] != b"{":
        raise source.error(f"header begins with {bytes(text[:1])!r}; '{{' is required")
    header = parse_object(text, source.error, "header")
    metadata = _metadata(header.pop("__metadata__", {}), source)
    tensors = [_tensor(name, entry, data_begin, source) for name, entry in header.items()]
    tensors.sort(key=lambda t: (t.offset, t.nbytes))
    _require_filled(tensors, data_begin, source)
    return {tensor.name: tensor for tensor in tensors}, metadata


def _metadata(value: object, source: SourceFile) -> dict[str, str]:
    if not isinstance(value, dict):
        raise source.error(f"__metadata__ is a {type(value).__name__}; an object is required")
    for key, text in value.items():
        if not (is_text(key) and is_text(text)):
            raise source.error(f"__metadata__ {quoted(key)} is not text; text is required")
    return cast("dict[str, str]", value)


def _tensor(name: str, entry: object, data_begin: int, source: SourceFile) -> TensorInfo:
    def refuse(problem: str) -> Exception:
        return source.error(f"tensor {quoted(name)} {problem}")

    if not is_text(name):
        raise refuse("has a name that is not Unicode text")
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        found = sorted(entry) if isinstance(entry, dict) else type(entry).__name__
        raise refuse(f"has fields {ascii(found)[:120]}; dtype, shape, data_offsets are required")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    storage = SAFETENSORS.get(dtype) if isinstance(dtype, str) else None
    if storage is None:
        known = " ".join(SAFETENSORS)
        raise refuse(f"has dtype {ascii(dtype)[:60]}; read are {known}")
    # type() rather than isinstance: true and false are ints to Python.
    sizes = shape if isinstance(shape, list) else [None]
    if not all(type(x) is int and 0 <= x <= MAX_BYTES for x in sizes):
        raise refuse(f"has shape {ascii(shape)[:120]}; a list of non-negative integers is required")
    if len(shape) > MAX_DIMS:
        raise refuse(f"has {len(shape)} dimensions; at most {MAX_DIMS} are read")
    try:
        nbytes = storage.nbytes(shape)
    except ValueError as problem:
        raise refuse(str(problem)) from None
    pair = offsets if isinstance(offsets, list) else []
    if len(pair) != 2 or any(type(x) is not int for x in pair):
        raise refuse(f"has data_offsets {ascii(offsets)[:120]}; two integers are required")
    begin, end = pair
    if not 0 <= begin <= end <= MAX_BYTES:
        raise refuse(f"has data_offsets {ascii(offsets)[:120]}; 0 <= begin <= end is required")
    if data_begin + end > source.size:
        raise refuse(f"ends at {data_begin + end}, file ends at {source.size}")
    if end - begin != nbytes:
        raise refuse(f"has {end - begin} bytes; {dtype} {shape} takes {nbytes}")
    return TensorInfo(name, dtype, tuple(shape), nbytes, data_begin + begin, source.path)


def _require_filled(tensors: list[TensorInfo], data_begin: int, source: SourceFile) -> None:
    position = data_begin
    for tensor in tensors:
        if tensor.offset != position:
            overlap = tensor.offset < position
            fault = "overlaps the tensor before it" if overlap else "follows a hole"
            raise source.error(
                f"tensor {quoted(tensor.name)} begins at {tensor.offset} and {fault}; "
                f"{position} is required"
            )
        position += tensor.nbytes
    if position != source.size:
        raise source.error(f"tensors end at {position}, file ends at {source.size}")
