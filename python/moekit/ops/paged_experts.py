"""Experts that are read when a token chooses them, and dropped when others need their memory.

Each resident expert is packed by itself; a call gathers those that it needs into a bank without a
copy. Who was used least recently goes first, among the experts of the same layer where that layer
holds its share: layers take turns, and a common order would drop each one just before it is needed.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from moekit.ops.arrays import Array, Float32, Int32
from moekit.ops.experts import Call, Experts
from moekit.ops.weights import PackedWeight, packed_bytes

#: role ("gate", "up", "down"), expert -> its matrix, packed.
Fetch = Callable[[str, int], PackedWeight]


class Pages:
    """The memory that all paged experts of a model share: at most `budget` bytes at any time."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.budget = 0
        self.layers: list[PagedExperts] = []
        self.loads = 0
        self._held: OrderedDict[tuple[int, int], dict[str, PackedWeight]] = OrderedDict()
        self._bytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the experts that are resident now."""
        return self._bytes

    def bytes_of(self, layer: int) -> int:
        """Bytes of the resident experts of one layer."""
        experts = self.layers[layer]
        return experts.expert_bytes * sum(1 for n, _ in self._held if n == layer)

    def hold(self, layer: int, wanted: Sequence[int]) -> list[dict[str, PackedWeight]]:
        """The experts of a layer, read where they are not resident; call it under the lock."""
        experts = self.layers[layer]
        for expert in wanted:
            if (layer, expert) in self._held:
                self._held.move_to_end((layer, expert))
        kept = set(wanted)
        for expert in wanted:
            if (layer, expert) not in self._held:
                self._make_room(layer, experts.expert_bytes, kept)
                self._held[layer, expert] = experts.read(expert)
                self._bytes += experts.expert_bytes
                self.loads += 1
        return [self._held[layer, expert] for expert in wanted]

    def _make_room(self, layer: int, nbytes: int, kept: set[int]) -> None:
        while self._bytes + nbytes > self.budget:
            share = self.budget // len(self.layers)
            own = self.bytes_of(layer) + nbytes > share
            victim = next(self._candidates(layer, kept, own), None)
            if victim is None:
                victim = next(self._candidates(layer, kept, not own), None)
            if victim is None:
                raise MemoryError(
                    f"[moe_ffn] {len(kept)} experts of {nbytes} bytes each are needed at once; "
                    f"{self.budget} bytes are left for experts by max_memory"
                )
            del self._held[victim]
            self._bytes -= self.layers[victim[0]].expert_bytes

    def _candidates(self, layer: int, kept: set[int], own: bool) -> Iterator[tuple[int, int]]:
        for n, expert in self._held:
            if (n == layer) == own and not (n == layer and expert in kept):
                yield n, expert


class _Sizes:
    """What `Experts` asks of a packed weight, without the weight."""

    def __init__(self, owner: PagedWeight, format: str, shape: tuple[int, int, int]) -> None:
        self._owner = owner
        self.formats = [format]
        self.experts, self.rows, self.cols = shape

    @property
    def nbytes(self) -> int:
        """Bytes that are resident now."""
        return self._owner.nbytes

    def copy_bytes(self, expert: int) -> Array:
        """One expert's panels, read from the file."""
        return self._owner.expert_bytes(expert)


class PagedWeight(PackedWeight):
    """One role's matrices [E, N, K]: looked at one by one, each is read from the file."""

    def __init__(
        self, format: str, shape: tuple[int, int, int], read: Callable[[int], PackedWeight]
    ) -> None:
        self.shape = shape
        self.core: Any = _Sizes(self, format, shape)
        self.read = read
        self.resident: Callable[[], int] = lambda: 0

    @property
    def format(self) -> str:
        """The format's name."""
        name: str = self.core.formats[0]
        return name

    @property
    def expert_size(self) -> int:
        """Bytes of one expert's matrix, packed."""
        return packed_bytes(self.format, *self.shape[1:])

    @property
    def nbytes(self) -> int:
        """Bytes that are resident now."""
        return self.resident() * self.expert_size

    def unpack_expert(self, expert: int) -> Float32:
        """Float32 [N, K] of one expert."""
        return self.read(expert).unpack()

    def unpack(self) -> Float32:
        """Float32 [E, N, K]: all of them, read one after another."""
        return np.stack([self.unpack_expert(expert) for expert in range(self.shape[0])])

    def expert_bytes(self, expert: int) -> Array:
        """A copy of one expert's panels."""
        return self.read(expert).expert_bytes(0)

    def fill(self, expert: int, weight: Any, first: int | None = None) -> None:
        """Paged weights come from a file and are not written."""
        raise ValueError("[pack] the weight is paged from a file; load without max_memory")

    def fill_blocks(self, expert: int, blocks: Any, first: int | None = None) -> None:
        """See `fill`."""
        self.fill(expert, blocks)

    def fill_bytes(self, expert: int, data: Any, begin: int | None = None) -> None:
        """See `fill`."""
        self.fill(expert, data)


class PagedExperts(Experts):
    """`Experts` of which only some are in memory; `ops.moe_ffn` reads those that it needs."""

    renumbers = True

    def __init__(
        self,
        pages: Pages,
        weights: dict[str, PagedWeight],
        activation: str = "silu",
        *,
        limit: float = 0.0,
        gate_bias: Float32 | None = None,
        up_bias: Float32 | None = None,
        down_bias: Float32 | None = None,
    ) -> None:
        self.paged: dict[str, PagedWeight] = weights
        self.gate = weights.get("gate")
        self.up = weights["up"]
        self.down = weights["down"]
        self.activation, self.limit = activation, limit
        self.gate_bias, self.up_bias, self.down_bias = gate_bias, up_bias, down_bias
        self._check()
        self._banks = {}
        self.pages = pages
        self.layer = len(pages.layers)
        pages.layers.append(self)
        self.expert_bytes = sum(weight.expert_size for weight in weights.values())
        for weight in weights.values():
            weight.resident = self._resident

    def _resident(self) -> int:
        return self.pages.bytes_of(self.layer) // self.expert_bytes

    def read(self, expert: int) -> dict[str, PackedWeight]:
        """The matrices of one expert, from the file."""
        return {role: weight.read(expert) for role, weight in self.paged.items()}

    def run(self, chosen: Int32, activation: str, call: Call) -> Float32:
        """`call` on the rows in turn, each time with the experts that they need.

        A token's bytes do not depend on who else is in the call, nor on the numbers that its
        experts have in a bank.
        """
        # Here an id is looked up before the core sees it.
        if int(chosen.max(initial=-1)) >= self.count or int(chosen.min(initial=-1)) < -1:
            bad = np.argwhere((chosen >= self.count) | (chosen < -1))
            token, slot = (int(i) for i in bad[0])
            raise ValueError(
                f"[moe_ffn] token {token}, slot {slot} has expert {chosen[token, slot]}; "
                f"-1 (empty) or 0 to {self.count - 1} is required"
            )
        parts = []
        for part in self.batches(chosen):
            ids = chosen[part]
            wanted = np.unique(ids[ids >= 0])
            if not wanted.size:
                wanted = np.zeros(1, np.int32)  # a bank has to have someone in it
            places = np.searchsorted(wanted, ids).astype(np.int32)
            places[ids < 0] = -1
            with self.pages.lock:
                bank = self.gathered(wanted.tolist()).bank(activation)
                parts.append(call(part, places, bank))
        if not parts:
            parts.append(call(slice(0), chosen, self.gathered([0]).bank(activation)))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def batches(self, chosen: Int32) -> Iterator[slice]:
        """Rows that need no more experts at once than fit; a token is never cut."""
        most = max(1, self.pages.budget // self.expert_bytes)
        needed: set[int] = set()
        first = 0
        for row, ids in enumerate(chosen.tolist()):
            grown = needed | {expert for expert in ids if expert >= 0}
            if len(grown) > most and row > first:
                yield slice(first, row)
                first, grown = row, {expert for expert in ids if expert >= 0}
            needed = grown
        if first < len(chosen):
            yield slice(first, len(chosen))

    def gathered(self, wanted: Sequence[int]) -> Experts:
        """The experts `wanted` as a bank; call it, and use the result, under the pages' lock."""
        found = self.pages.hold(self.layer, wanted)
        banks = {role: PackedWeight.gather([(m[role], 0) for m in found]) for role in self.paged}
        ids = list(wanted)

        def rows(bias: Float32 | None) -> Float32 | None:
            return None if bias is None else np.ascontiguousarray(bias[ids])

        return Experts(
            banks.get("gate"),
            banks["up"],
            banks["down"],
            activation=self.activation,
            limit=self.limit,
            gate_bias=rows(self.gate_bias),
            up_bias=rows(self.up_bias),
            down_bias=rows(self.down_bias),
        )
