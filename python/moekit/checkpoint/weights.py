"""A Hugging Face checkpoint under the names of its unquantised self.

Model families ask for `x.weight`; whether the file holds that tensor, float8 with scales, or the
three tensors of GPTQ is settled here. What a loader wants to keep packed it finds by `parts`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from ..errors import MissingTensorError
from . import hf_quant
from .source import Array, quoted
from .tensors import Checkpoint, TensorInfo

_FP8_BLOCK = (128, 128)
_FP4_BLOCK = (1, 32)
# Scales of activations, for hardware that quantises them beforehand; exact arithmetic has no use
# for them.
_ACTIVATION_SCALES = (".activation_scale", ".input_scale")


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a checkpoint's quantised linear layers are stored, from `quantization_config`."""

    method: str = ""
    bits: int = 4
    group_size: int = 128
    zero_offset: int = 1
    fp8_block: tuple[int, int] = _FP8_BLOCK


@dataclass(frozen=True, slots=True)
class WeightInfo:
    """A weight: `scheme` is plain, fp8, fp4, mxfp4, gptq or awq; `parts` are its stored tensors.

    The roles in `parts` are those of the arguments of the functions in `hf_quant`.
    """

    name: str
    scheme: str
    shape: tuple[int, ...]
    parts: Mapping[str, str]


class Weights(Mapping[str, Array]):
    """`weights[name]` is the tensor as stored, or float32 where it is stored quantised."""

    def __init__(self, checkpoint: Checkpoint, config: Mapping[str, object]) -> None:
        self.checkpoint = checkpoint
        self._scheme = _read_scheme(checkpoint, config.get("quantization_config"))
        self._weights = _find_weights(checkpoint, self._scheme)

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def __contains__(self, name: object) -> bool:
        return name in self._weights

    def info(self, name: str) -> WeightInfo:
        """Shape, scheme and stored parts; nothing is read."""
        try:
            return self._weights[name]
        except KeyError:
            found = self.checkpoint
            raise MissingTensorError(
                f"[{found.format}] {found.path}: has no tensor {quoted(str(name))}"
            ) from None

    def __getitem__(self, name: str) -> Array:
        return self._read(self.info(name), lambda part: self.checkpoint[part])

    def read_rows(self, name: str, start: int, stop: int) -> Array:
        """`weights[name][start:stop]`; of plain tensors and banks [E, ...] only that is read."""
        info = self.info(name)
        if info.scheme == "plain" or len(info.shape) == 3:
            return self._read(info, lambda part: self.checkpoint.read_rows(part, start, stop))
        if not 0 <= start <= stop <= info.shape[0]:
            raise ValueError(
                f"[read_rows] rows {start}:{stop} of {quoted(name)}; it has {info.shape[0]}"
            )
        return self[name][start:stop]

    def _read(self, info: WeightInfo, read: Callable[[str], Array]) -> Array:
        if info.scheme == "plain":
            return read(info.parts["weight"])
        parts = {role: read(name) for role, name in info.parts.items()}
        scheme = self._scheme
        try:
            if info.scheme == "fp8":
                return hf_quant.dequantize_fp8(**parts, block=scheme.fp8_block)
            if info.scheme == "fp4":
                return hf_quant.dequantize_fp4(**parts, block=_FP4_BLOCK)
            if info.scheme == "mxfp4":
                # The plain checkpoint has [E, in, out]; the blocks run along `in`.
                return hf_quant.dequantize_mxfp4(**parts).swapaxes(-1, -2)
            if info.scheme == "awq":
                return hf_quant.dequantize_awq(**parts, group_size=scheme.group_size)
            return hf_quant.dequantize_gptq(
                **parts,
                bits=scheme.bits,
                group_size=scheme.group_size,
                zero_offset=scheme.zero_offset,
            )
        except ValueError as problem:
            first = self.checkpoint.info(next(iter(info.parts.values())))
            raise self.checkpoint.error(first, f"cannot be dequantised: {problem}") from problem


def _read_scheme(checkpoint: Checkpoint, config: object) -> Scheme:
    if config is None:
        return Scheme()

    def refuse(key: str, found: object, wanted: str) -> Exception:
        text = f"quantization_config: {key} is {ascii(found)[:60]}; {wanted} is required"
        return checkpoint.error(None, text)

    if not isinstance(config, dict):
        raise checkpoint.error(None, "quantization_config is no object; an object is required")
    settings: dict[str, object] = config

    def integer(key: str, default: int, allowed: Callable[[int], bool], wanted: str) -> int:
        value = settings.get(key, default)
        if type(value) is not int or not allowed(value):
            raise refuse(key, value, wanted)
        return value

    method = config.get("quant_method", "")
    if method in ("fp8", "mxfp4", "finegrained_fp8"):
        block = config.get("weight_block_size") or list(_FP8_BLOCK)
        sizes = block if isinstance(block, list) else []
        if len(sizes) != 2 or any(type(size) is not int or size < 1 for size in sizes):
            raise refuse("weight_block_size", block, "a pair of sizes")
        return Scheme(method, fp8_block=(sizes[0], sizes[1]))
    if method not in ("gptq", "awq"):
        raise refuse("quant_method", method, "fp8, mxfp4, gptq or awq")
    group_size = integer(
        "group_size", 128, lambda n: n == -1 or 0 < n < 1 << 31, "a group size or -1"
    )
    if method == "awq":
        integer("bits", 4, lambda n: n == 4, "4")
        version = str(config.get("version", config.get("format", "gemm"))).lower()
        if version != "gemm":
            raise refuse("version", version, "gemm")
        return Scheme(method, 4, group_size, 0)
    if config.get("dynamic"):
        raise refuse("dynamic", config["dynamic"], "one setting for all layers")
    bits = integer("bits", 4, lambda n: n in (2, 3, 4, 8), "2, 3, 4 or 8")
    stored = config.get("checkpoint_format", config.get("format", "gptq"))
    if stored not in ("gptq", "gptq_v2"):
        raise refuse("checkpoint_format", stored, "gptq or gptq_v2")
    return Scheme(method, bits, group_size, 1 if stored == "gptq" else 0)


def _find_weights(checkpoint: Checkpoint, scheme: Scheme) -> dict[str, WeightInfo]:
    weights: dict[str, WeightInfo] = {}
    for name in checkpoint:
        info = checkpoint.info(name)
        found = _weight_of(checkpoint, scheme, info)
        if found is None:
            continue
        if found.name in weights:
            raise checkpoint.error(info, f"gives {quoted(found.name)} a second time")
        weights[found.name] = found
    return weights


def _weight_of(checkpoint: Checkpoint, scheme: Scheme, info: TensorInfo) -> WeightInfo | None:
    """The weight whose main part this tensor is, or None for the lesser parts of another."""
    name, shape = info.name, info.shape
    if name.endswith(".qweight"):
        return _packed_linear(checkpoint, scheme, info)
    if name.endswith("_blocks") and name[:-7] + "_scales" in checkpoint:
        if len(shape) < 3 or shape[-1] != 16 or info.dtype != "U8":
            text = f"is {info.dtype} {list(shape)}; U8 [..., N, K / 32, 16] is required"
            raise checkpoint.error(info, text)
        parts = {"blocks": name, "scales": name[:-7] + "_scales"}
        return WeightInfo(name[:-7], "mxfp4", (*shape[:-3], shape[-2] * 32, shape[-3]), parts)
    if name + "_scale_inv" in checkpoint:
        scale = name + "_scale_inv"
        if info.dtype.startswith("F8_"):
            return WeightInfo(name, "fp8", shape, {"weight": name, "scale_inv": scale})
        if info.dtype not in ("I8", "U8") or len(shape) < 2:
            text = f"is {info.dtype} {list(shape)} with scales; float8 or packed float4 is required"
            raise checkpoint.error(info, text)
        wide = (*shape[:-1], 2 * shape[-1])
        return WeightInfo(name, "fp4", wide, {"packed": name, "scale_inv": scale})
    if _is_lesser_part(checkpoint, name):
        return None
    if info.dtype.startswith("F8_E4M3") or info.dtype.startswith("F8_E5M2"):
        raise checkpoint.error(info, f"is {info.dtype} without {quoted(name + '_scale_inv')}")
    return WeightInfo(name, "plain", shape, {"weight": name})


def _is_lesser_part(checkpoint: Checkpoint, name: str) -> bool:
    if name.endswith("_scale_inv"):
        return name.removesuffix("_scale_inv") in checkpoint
    if name.endswith("_scales"):
        return name.removesuffix("_scales") + "_blocks" in checkpoint
    base, _, role = name.rpartition(".")
    if role in ("qzeros", "scales", "g_idx"):
        return base + ".qweight" in checkpoint
    return name.endswith(_ACTIVATION_SCALES) and base + ".weight_scale_inv" in checkpoint


def _packed_linear(checkpoint: Checkpoint, scheme: Scheme, info: TensorInfo) -> WeightInfo:
    if scheme.method not in ("gptq", "awq"):
        text = "is packed; a quantization_config with quant_method gptq or awq is required"
        raise checkpoint.error(info, text)
    base = info.name.removesuffix("qweight")
    parts = {role: base + role for role in ("qweight", "qzeros", "scales")}
    for part in parts.values():
        if part not in checkpoint:
            raise checkpoint.error(info, f"comes without {quoted(part)}")
    if info.dtype != "I32" or len(info.shape) != 2:
        raise checkpoint.error(
            info, f"is {info.dtype} {list(info.shape)}; I32 [.., ..] is required"
        )
    rows, columns = info.shape
    if scheme.method == "awq":
        return WeightInfo(base + "weight", "awq", (columns * 8, rows), parts)
    if base + "g_idx" in checkpoint:
        parts["g_idx"] = base + "g_idx"
    if rows * 32 % scheme.bits:
        raise checkpoint.error(info, f"has {rows} rows; a multiple of {scheme.bits} is required")
    shape = (columns, rows * 32 // scheme.bits)
    return WeightInfo(base + "weight", "gptq", shape, parts)


def open_weights(checkpoint: Checkpoint, config: Mapping[str, object]) -> Weights:
    """The weights of `checkpoint` as `config` (its config.json) says they are stored.

    FileError for a scheme that is not read, a part that is missing, or shapes that disagree.
    """
    return Weights(checkpoint, config)
