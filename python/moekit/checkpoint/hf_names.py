"""Which weight each tensor of a Hugging Face checkpoint belongs to, and the schemes' own checks."""

from collections.abc import Collection

from .hf_scheme import Scheme
from .source import quoted
from .tensors import Checkpoint, TensorInfo
from .weights import WeightInfo

_SCALES = ("F32", "F16", "BF16")
# Scales of activations, for hardware that quantises them beforehand; exact arithmetic has no use
# for them.
_ACTIVATION_SCALES = (".activation_scale", ".input_scale")


def find_weights(checkpoint: Checkpoint, scheme: Scheme) -> dict[str, WeightInfo]:
    """Every weight by its plain name; FileError for parts that are missing or do not fit."""
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
    scale = _scale_of(checkpoint, info)
    if scale is not None:
        _require_part(checkpoint, scale, (*_SCALES, "U8", "F8_E8M0"))
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


def _scale_of(checkpoint: Checkpoint, info: TensorInfo) -> str | None:
    """The scales of a float8 or float4 weight: `x.weight_scale_inv`, in DeepSeek-V4 `x.scale`."""
    if info.name + "_scale_inv" in checkpoint:
        return info.name + "_scale_inv"
    base, _, role = info.name.rpartition(".")
    is_packed = info.dtype.startswith("F8_") or info.dtype in ("I8", "U8")
    published = base + ".scale"
    return published if role == "weight" and is_packed and published in checkpoint else None


def _is_lesser_part(checkpoint: Checkpoint, name: str) -> bool:
    if name.endswith(".scale"):
        weight = name.removesuffix("scale") + "weight"
        return weight in checkpoint and _scale_of(checkpoint, checkpoint.info(weight)) == name
    if name.endswith("_scale_inv"):
        return name.removesuffix("_scale_inv") in checkpoint
    if name.endswith("_scales"):
        return name.removesuffix("_scales") + "_blocks" in checkpoint
    base, _, role = name.rpartition(".")
    if role in ("qzeros", "scales", "g_idx"):
        return base + ".qweight" in checkpoint
    return name.endswith(_ACTIVATION_SCALES) and base + ".weight_scale_inv" in checkpoint


def _require_part(
    checkpoint: Checkpoint, name: str, dtypes: Collection[str], dimensions: int | None = None
) -> None:
    """FileError unless a part of a quantised weight has one of these dtypes."""
    info = checkpoint.info(name)
    if info.dtype in dtypes and dimensions in (None, len(info.shape)):
        return
    shape = "" if dimensions is None else f" [{', '.join(['..'] * dimensions)}]"
    wanted = " or ".join(sorted(dtypes))
    raise checkpoint.error(info, f"is {info.dtype} {list(info.shape)}; {wanted}{shape} is required")


def _packed_linear(checkpoint: Checkpoint, scheme: Scheme, info: TensorInfo) -> WeightInfo:
    if scheme.method not in ("gptq", "awq"):
        text = "is packed; a quantization_config with quant_method gptq or awq is required"
        raise checkpoint.error(info, text)
    base = info.name.removesuffix("qweight")
    parts = {role: base + role for role in ("qweight", "qzeros", "scales")}
    for part in parts.values():
        if part not in checkpoint:
            raise checkpoint.error(info, f"comes without {quoted(part)}")
    for role in ("qweight", "qzeros"):
        _require_part(checkpoint, parts[role], ("I32",), 2)
    _require_part(checkpoint, parts["scales"], _SCALES, 2)
    rows, columns = info.shape
    order = base + "g_idx"
    if scheme.method == "awq":
        if order in checkpoint:
            raise checkpoint.error(info, f"comes with {quoted(order)}; AWQ has no order")
        _require_groups(checkpoint, scheme, parts["scales"], rows)
        return WeightInfo(base + "weight", "awq", (columns * 8, rows), parts)
    if order in checkpoint:
        parts["g_idx"] = order
        _require_part(checkpoint, order, ("I32", "I64"), 1)
    elif scheme.has_order:
        raise checkpoint.error(info, f"comes without {quoted(order)}, which desc_act requires")
    if rows * 32 % scheme.bits:
        raise checkpoint.error(info, f"has {rows} rows; a multiple of {scheme.bits} is required")
    shape = (columns, rows * 32 // scheme.bits)
    _require_groups(checkpoint, scheme, parts["scales"], shape[1])
    return WeightInfo(base + "weight", "gptq", shape, parts)


def _require_groups(checkpoint: Checkpoint, scheme: Scheme, name: str, inputs: int) -> None:
    """FileError unless there is a row of scales for each group of `inputs`."""
    info = checkpoint.info(name)
    groups = 1 if scheme.group_size == -1 else -(-inputs // scheme.group_size)
    if info.shape[0] != groups:
        text = (
            f"has {info.shape[0]} groups; {groups} are required for {inputs} inputs and "
            f"group_size {scheme.group_size}"
        )
        raise checkpoint.error(info, text)
