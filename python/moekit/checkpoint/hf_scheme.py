"""How the linear layers of a Hugging Face checkpoint are quantised: its `quantization_config`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .tensors import Checkpoint

_FP8_BLOCK = (128, 128)


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a checkpoint's quantised linear layers are stored, from `quantization_config`."""

    method: str = ""
    bits: int = 4
    group_size: int = 128
    zero_offset: int = 1
    has_order: bool = False
    fp8_block: tuple[int, int] = _FP8_BLOCK


def read_scheme(checkpoint: Checkpoint, config: object) -> Scheme:
    """The scheme of a checkpoint; FileError naming the field that is absurd or unknown."""
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
    # Older AWQ files say w_bit and q_group_size.
    group_size = integer(
        "q_group_size" if "q_group_size" in config else "group_size",
        128,
        lambda n: n == -1 or 0 < n < 1 << 31,
        "a group size or -1",
    )
    if method == "awq":
        integer("w_bit" if "w_bit" in config else "bits", 4, lambda n: n == 4, "4")
        if config.get("zero_point", True) is not True:
            raise refuse("zero_point", config["zero_point"], "true")
        version = str(config.get("version", config.get("format", "gemm"))).lower()
        if version != "gemm":
            raise refuse("version", version, "gemm")
        return Scheme(method, 4, group_size, 0)
    rules = config.get("dynamic") or {}
    # Negative rules only say which layers are plain, and that is seen from the tensors.
    if not isinstance(rules, Mapping) or any(not str(rule).startswith("-:") for rule in rules):
        raise refuse("dynamic", rules, "one setting for all layers that are quantised")
    bits = integer("bits", 4, lambda n: n in (2, 3, 4, 8), "2, 3, 4 or 8")
    stored = config.get("checkpoint_format", config.get("format", "gptq"))
    if stored not in ("gptq", "gptq_v2"):
        raise refuse("checkpoint_format", stored, "gptq or gptq_v2")
    order = config.get("desc_act") or False
    if type(order) is not bool:
        raise refuse("desc_act", order, "true or false")
    return Scheme(method, bits, group_size, 1 if stored == "gptq" else 0, order)
