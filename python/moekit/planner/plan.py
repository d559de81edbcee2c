"""ModelPlan: the figures of one configuration in one format, at one context and batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from . import roofline
from .cost import Cost, cost_per_million, training_cost
from .fields import check_count, check_number, short
from .formats import Format, cache_bits, find_format
from .machines import Machine, find_machine
from .tensors import COMPONENTS, Block, Inventory, Weight

# Components that a quantised model keeps in float32, as `mk.load` does.
_FLOAT32 = ("norms", "router", "residual")


@dataclass(frozen=True)
class Placement:
    """Devices that hold the weights and the asked-for cache, and what they leave over."""

    devices: int
    memory_bytes: int
    needed_bytes: int
    free_bytes: int
    max_context: int  # of one sequence in what the weights leave
    max_batch: int  # sequences of the plan's context in what the weights leave


@dataclass(frozen=True)
class ModelPlan:
    """What a model costs. Counts are exact integers; times are roofline bounds.

    `active` is what one token passes through: every parameter that is not a routed expert's, plus
    K of E experts in each sparse layer. Work (`flops_per_token`, `bytes_per_token`) is that of one
    decoded token at `batch` sequences with `context` tokens each in the cache.
    """

    inventory: Inventory
    format: Format
    name: str = ""
    context: int = 0
    batch: int = 1
    kv_format: str | float = "bf16"
    recipe: Mapping[str, Format] = field(default_factory=dict)
    source: str = ""

    # -- parameters ---------------------------------------------------------------------------

    def _sum(self, what: str, *, mtp: bool = False, lookup: bool = True) -> int:
        return sum(
            getattr(weight, what) * count
            for block, count in self.inventory.blocks(mtp=mtp)
            for weight in block.weights
            if lookup or not weight.lookup
        )

    @cached_property
    def active_params(self) -> int:
        """Parameters one token passes through, the embedding table included."""
        return self._sum("used")

    @cached_property
    def active_params_no_embedding(self) -> int:
        """The same without an untied input embedding: that is a lookup, no multiplication."""
        return self._sum("used", lookup=False)

    @cached_property
    def total_params(self) -> int:
        """All parameters, multi-token prediction layers left out."""
        return self._sum("total")

    @cached_property
    def mtp_params(self) -> int:
        """Parameters of the multi-token prediction layers; embedding and head are shared."""
        return self._sum("total", mtp=True)

    @cached_property
    def buffers(self) -> int:
        """Values a checkpoint holds that training does not count: selection biases, id tables."""
        return sum(block.buffers * count for block, count in self.inventory.blocks())

    @property
    def leverage(self) -> float:
        """Total over active parameters: 1.0 for a dense model."""
        return self.total_params / self.active_params

    @property
    def sparsity(self) -> float:
        """Share of the parameters that a token leaves alone."""
        return 1.0 - self.active_params / self.total_params

    def _by_component(self, what: str) -> dict[str, int]:
        sums = dict.fromkeys(COMPONENTS, 0)
        for block, count in self.inventory.blocks():
            for weight in block.weights:
                sums[weight.component] += getattr(weight, what) * count
        return sums

    @cached_property
    def components(self) -> dict[str, int]:
        """Parameters by component; they add up to `total_params`."""
        return self._by_component("total")

    @cached_property
    def active_components(self) -> dict[str, int]:
        """Active parameters by component; they add up to `active_params`."""
        return self._by_component("used")

    # -- experts ------------------------------------------------------------------------------

    @cached_property
    def num_experts(self) -> int:
        """Routed experts of a sparse layer (the largest number if layers differ)."""
        return max((layer.experts for layer in self.inventory.layers), default=0)

    @cached_property
    def top_k(self) -> int:
        return max((layer.top_k for layer in self.inventory.layers), default=0)

    @cached_property
    def moe_layers(self) -> int:
        layers = self.inventory.layers
        return sum(layer.count for layer in layers if layer.experts and not layer.mtp)

    @cached_property
    def num_layers(self) -> int:
        return sum(layer.count for layer in self.inventory.layers if not layer.mtp)

    @property
    def expected_distinct_experts(self) -> float:
        """Experts of a layer that `batch` tokens wake under uniform routing: E(1 - (1 - K/E)^B)."""
        return roofline.distinct_experts(self.num_experts, self.top_k, self.batch)

    # -- bytes --------------------------------------------------------------------------------

    def format_of(self, weight: Weight) -> Format:
        """The format of a matrix: the recipe's, else float32 for a router, else the plan's."""
        chosen = self.recipe.get(weight.component)
        if chosen is not None:
            return chosen
        if self.format.is_float:
            return self.format
        if weight.component in _FLOAT32 or not (weight.is_matrix or weight.lookup):
            return find_format("f32")
        return self.format

    def nbytes(self, weight: Weight) -> int:
        """Bytes of one copy of a weight, scales included."""
        format = self.format_of(weight)
        if len(weight.shape) == 1:
            plain = format if format.is_float else find_format("f32")
            return plain.nbytes(1, weight.shape[0])
        return format.nbytes(weight.shape[0], weight.shape[1])

    @cached_property
    def component_bytes(self) -> dict[str, int]:
        """Bytes by component, scales included."""
        sums = dict.fromkeys(COMPONENTS, 0)
        for block, count in self.inventory.blocks():
            for weight in block.weights:
                sums[weight.component] += self.nbytes(weight) * weight.copies * count
        return sums

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of all weights in this format, scales included."""
        return sum(self.component_bytes.values())

    @cached_property
    def loaded_bytes(self) -> int:
        """Bytes that `mk.load` keeps for this format, which differ from a file's.

        Matrices lie in panels of sixteen rows and whole cache lines (`Format.packed_bytes`).
        The embedding stays a table of 16 bits (32 for f32), rows are looked up in it; the head
        takes 8 bits where the format has fewer, and a tied one is packed beside the table;
        routers, norms and biases are float32 in every format.
        """
        f32, wide = find_format("f32"), self.format.bits >= 8
        table = f32 if self.format.name == "f32" else find_format("bf16")
        eight_bits = "q8_0" if self.format.source == "ggml" else "int8"
        head = self.format if wide else find_format(eight_bits)
        total = 4 * self.buffers
        for block, count in self.inventory.blocks():
            for weight in block.weights:
                rows, cols = (1, *weight.shape) if len(weight.shape) == 1 else weight.shape
                if weight.component == "embedding":
                    size = table.nbytes(rows, cols)
                    size += 0 if weight.lookup else head.packed_bytes(rows, cols)
                elif weight.component == "head" and weight.is_matrix:
                    size = head.packed_bytes(rows, cols)
                elif weight.component in _FLOAT32 or not weight.is_matrix:
                    size = f32.nbytes(rows, cols)
                else:
                    size = self.format_of(weight).packed_bytes(rows, cols)
                total += size * weight.copies * count
        return total

    @property
    def bits_per_weight(self) -> float:
        """Bits a parameter takes on average, scales and float32 parts included."""
        return 8.0 * self.weight_bytes / self.total_params

    # -- cache --------------------------------------------------------------------------------

    def _caches(self, *, index: bool) -> int | float:
        total = sum(
            cache.elements * count / cache.rate
            for block, count in self.inventory.blocks()
            for cache in block.caches
            if cache.index == index and not cache.ring
        )
        return int(total) if float(total).is_integer() else total

    @cached_property
    def kv_elements_per_token(self) -> int | float:
        """Cache elements written for a token, over all layers (keys and values, or latents).

        Layers with a window count in full; DeepSeek-V4's compressed entries count by their share
        and its fixed 128-token window not at all (it is in `cache_bytes`). A sparse indexer's keys
        are in `index_elements_per_token`.
        """
        return self._caches(index=False)

    @cached_property
    def index_elements_per_token(self) -> int | float:
        """Keys of the lightning indexer, cached beside the latents (DeepSeek-V3.2, GLM-5)."""
        return self._caches(index=True)

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes of `kv_elements_per_token` in the plan's cache format."""
        size = self.kv_elements_per_token * cache_bits(self.kv_format) / 8
        return int(size) if float(size).is_integer() else size

    def cache_bytes(self, context: int, batch: int = 1) -> int:
        """Bytes of the cache of `batch` sequences of `context` tokens: windows, states and all."""
        check_count("context", context)
        check_count("batch", batch, low=1)
        elements = state = 0
        for block, count in self.inventory.blocks():
            elements += sum(cache.total(context) for cache in block.caches) * count
            state += block.state * count
        # recurrent states accumulate: they stay float32 whatever the cache is
        return batch * (int(-(-elements * cache_bits(self.kv_format) // 8)) + 4 * state)

    def max_context(self, memory_bytes: float, batch: int = 1) -> int:
        """Longest context of `batch` sequences beside the weights in this many bytes."""
        free = int(check_number("memory_bytes", memory_bytes)) - self.weight_bytes
        return _largest(lambda context: self.cache_bytes(context, batch) <= free)

    def max_batch(self, memory_bytes: float, context: int | None = None) -> int:
        """Most sequences of `context` tokens beside the weights in this many bytes."""
        context = self.context if context is None else check_count("context", context)
        free = int(check_number("memory_bytes", memory_bytes)) - self.weight_bytes
        one = self.cache_bytes(context)
        return 0 if free < 0 else _largest(lambda n: n * one <= free) if one else 1 << 40

    def devices(self, memory_bytes: float) -> int:
        """Devices of this much memory that hold the weights and the plan's cache."""
        size = check_number("memory_bytes", memory_bytes)
        return max(1, -int(-self.memory_bytes // size))

    @property
    def memory_bytes(self) -> int:
        """Weights plus the cache of `batch` sequences of `context` tokens."""
        cache = self.cache_bytes(self.context, self.batch) if self.context else 0
        return self.weight_bytes + cache

    def placement(self, memory_bytes: float, devices: int | None = None) -> Placement:
        """`devices(memory_bytes)` with what it leaves for more cache."""
        count = self.devices(memory_bytes)
        if devices is not None:
            count = check_count("devices", devices, low=1, high=1_000_000)
        total = int(count * check_number("memory_bytes", memory_bytes))
        return Placement(
            count,
            int(memory_bytes),
            self.memory_bytes,
            total - self.memory_bytes,
            self.max_context(total),
            self.max_batch(total),
        )

    # -- work ---------------------------------------------------------------------------------

    @cached_property
    def flops_per_token(self) -> int:
        """FLOPs of one decoded token: 2 a weight used, plus attention over `context` tokens."""
        return roofline.flops_per_token(self, self.context)

    @cached_property
    def bytes_per_token(self) -> float:
        """Bytes read for one decoded token of a step of `batch` tokens."""
        return roofline.step_bytes(self, self.context, self.batch) / self.batch

    @property
    def arithmetic_intensity(self) -> float:
        """FLOPs a byte read, in a decode step of `batch` tokens."""
        return self.flops_per_token / self.bytes_per_token

    def tokens_per_second(self, machine: object, phase: str = "decode") -> float:
        """Roofline bound over all sequences; `phase` is "decode" or "prefill"."""
        result = self.roofline(machine)
        if phase not in ("decode", "prefill"):
            raise ValueError(f"[plan_model] phase is {short(phase)}; decode or prefill is required")
        return result.decode if phase == "decode" else result.prefill

    def roofline(self, machine: object) -> roofline.Roofline:
        """Decode and prefill bounds on a machine, which side binds, and from which batch."""
        return roofline.bound(self, find_machine(machine))

    # -- money --------------------------------------------------------------------------------

    def cost(self, machine: object, **options: Any) -> Cost:
        """Dollars for a million decoded tokens; see `cost.cost_per_million`."""
        found: Machine = find_machine(machine)
        return cost_per_million(found, self.tokens_per_second(found), **options)

    def training(self, tokens: float, machine: object, **options: Any) -> Cost:
        """Training compute 6 * active * tokens, device hours and dollars."""
        return training_cost(self.active_params, tokens, find_machine(machine), **options)

    def training_flops(self, tokens: float) -> float:
        """6 FLOPs for each active parameter and training token (arXiv 2001.08361)."""
        return 6.0 * self.active_params * check_number("tokens", tokens)

    # -- looking ------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Every figure, active first, ready for JSON."""
        return {
            "name": self.name,
            "model_type": self.inventory.model_type,
            "active_params": self.active_params,
            "active_params_no_embedding": self.active_params_no_embedding,
            "total_params": self.total_params,
            "mtp_params": self.mtp_params,
            "leverage": self.leverage,
            "sparsity": self.sparsity,
            "num_layers": self.num_layers,
            "moe_layers": self.moe_layers,
            "num_experts": self.num_experts,
            "top_k": self.top_k,
            "components": {
                name: {
                    "active": self.active_components[name],
                    "total": total,
                    "bytes": self.component_bytes[name],
                }
                for name, total in self.components.items()
                if total
            },
            "format": self.format.name,
            "bits": self.format.bits,
            "bits_with_scales": self.format.bits_with_scales,
            "bits_per_weight": self.bits_per_weight,
            "weight_bytes": self.weight_bytes,
            "loaded_bytes": self.loaded_bytes,
            "kv_format": self.kv_format,
            "kv_elements_per_token": self.kv_elements_per_token,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "index_elements_per_token": self.index_elements_per_token,
            "context": self.context,
            "batch": self.batch,
            "cache_bytes": self.memory_bytes - self.weight_bytes,
            "memory_bytes": self.memory_bytes,
            "expected_distinct_experts": self.expected_distinct_experts,
            "flops_per_token": self.flops_per_token,
            "bytes_per_token": self.bytes_per_token,
            "arithmetic_intensity": self.arithmetic_intensity,
            "source": self.source,
        }

    def __repr__(self) -> str:
        name = self.name or self.inventory.model_type
        return (
            f"ModelPlan({name}: {self.active_params / 1e9:.2f}B active of "
            f"{self.total_params / 1e9:.2f}B, {self.format.name} {self.weight_bytes / 1e9:.1f} GB)"
        )

    def at(self, **changes: Any) -> ModelPlan:
        """The same model with another format, context, batch or kv_format."""
        if "format" in changes:
            changes["format"] = find_format(changes["format"])
        if "context" in changes:
            check_count("context", changes["context"])
        if "batch" in changes:
            check_count("batch", changes["batch"], low=1)
        if "kv_format" in changes:
            cache_bits(changes["kv_format"])
        return replace(self, **changes)

    def blocks(self) -> list[tuple[Block, int]]:
        """The distinct blocks with their counts, for anything that adds up its own figure."""
        return list(self.inventory.blocks())


def _largest(fits: Any) -> int:
    """The largest n up to 2^40 for which a monotone `fits` holds; 0 when none does."""
    low, high = 0, 1 << 40
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low
