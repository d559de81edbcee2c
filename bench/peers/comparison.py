"""Peers beside moekit in one format of one layer: packed, compared, and taking turns."""

from __future__ import annotations

import statistics
import sys
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from moekit import _core
from moekit.bench import Shape, choose_experts
from moekit.ops import Assignment
from moekit.ops.limits import LimitProbe

from .layer import Float32, Layer, Missing
from .library import Library
from .summary import Ratio


@dataclass
class Line:
    """What one peer did in one cell."""

    shape: str
    experts: int
    format: str
    tokens: int
    peer: str
    error: float = 0.0
    """NMSE against the definition."""
    distance: float = 0.0
    """NMSE against moekit's output."""
    same: bool = True
    """Both are within the tolerance."""
    times: list[float] = field(default_factory=list)
    ratio: float = 0.0
    fraction: float = 0.0
    bytes_per_second: float = 0.0
    operations_per_second: float = 0.0

    def to_ratio(self) -> Ratio:
        return Ratio(self.shape, self.format, self.tokens, self.peer, self.ratio)


@dataclass(frozen=True)
class Peer:
    library: Library
    index: int
    name: str
    formats: tuple[str, ...]


def fitting(shape: Shape, format: str, gib: float) -> Shape:
    """The shape with as many experts as fit into the memory, K at least."""
    experts = max(shape.top_k, min(shape.experts, int(gib * 2**30 / shape.expert_bytes(format))))
    if experts < shape.experts:
        say(f"{shape.name} {format}: {experts} of {shape.experts} experts, {gib} GiB")
    return replace(shape, experts=experts)


class Comparison:
    """One format of one layer."""

    def __init__(
        self,
        shape: Shape,
        layer: Layer,
        folder: Path,
        format: str,
        libraries: list[Library],
        only: tuple[str, ...] = ("",),
    ) -> None:
        self._shape, self._layer, self._folder, self._format = shape, layer, folder, format
        self._libraries, self._only = libraries, only

    def run(
        self, token_counts: list[int], probe: LimitProbe, rounds: int, gib: float
    ) -> list[Line]:
        if self._format not in _core.format_names():
            say(f"skipped: moekit has no {self._format} in this build")
            return []
        shape = fitting(self._shape, self._format, gib)
        peers = self._packed(shape)
        lines: list[Line] = []
        if not any(peer.name == "moekit" for peer in peers):
            return lines
        for tokens in token_counts:
            lines += self._take_turns(shape, tokens, peers, probe, rounds)
        for peer in peers:
            with suppress(Missing):  # its process has ended, and the weights with it
                peer.library.ask("drop", peer=peer.index)
        return lines

    def _packed(self, shape: Shape) -> list[Peer]:
        ready = []
        for library in self._libraries:
            try:
                if not library.running:
                    library.start()
                sizes = [shape.hidden, shape.inter, shape.experts, shape.top_k]
                library.ask("layer", sizes=sizes, folder=str(self._folder))
                for index, (name, formats) in enumerate(library.peers):
                    wanted = library.name == "moekit" or name.startswith(self._only)
                    if wanted and self._format in formats:
                        library.ask("pack", peer=index, format=self._format)
                        ready.append(Peer(library, index, name, formats))
            except Missing as missing:
                say(f"skipped: {missing}")
        return ready

    def _take_turns(
        self, shape: Shape, tokens: int, peers: list[Peer], probe: LimitProbe, rounds: int
    ) -> list[Line]:
        short = tokens <= 16
        x = np.random.default_rng(1).standard_normal((tokens, shape.hidden), np.float32)
        routings = choose_experts(shape, tokens, 8 if short else 2)
        touched = statistics.fmean(np.unique(routing.experts).size for routing in routings)
        lines = self.prepared(shape, x, routings, peers)
        ours = next((line for line in lines.values() if line.peer == "moekit"), None)
        if ours is None:
            return []
        bandwidths, peaks = [], []
        dot = shape.dot(self._format)
        for turn in range(rounds):
            bandwidths.append(probe.read_bandwidth())
            peaks.append(probe.multiply_peak(dot))
            # Everybody is first as often as last.
            for peer in list(lines) if turn % 2 == 0 else list(reversed(lines)):
                line = lines[peer]
                if turn >= 2 and statistics.median(line.times) > 3 * statistics.median(ours.times):
                    continue
                try:
                    count = 3 if short else 1
                    line.times += peer.library.ask(
                        "run", peer=peer.index, first=turn * count, count=count
                    )
                    peer.library.settle()
                except Missing as missing:
                    say(f"lost: {missing}")
                    del lines[peer]
        bandwidth, peak = statistics.median(bandwidths), statistics.median(peaks)
        say(
            f"\n{shape.name} ({shape.experts} experts) {self._format}, {tokens} tokens: "
            f"reads {bandwidth / 1e9:.1f} GB/s, multiplies {peak / 1e9:.0f} Gop/s ({dot})"
        )
        nbytes, operations = touched * shape.expert_bytes(self._format), shape.operations(tokens)
        roofline = max(nbytes / bandwidth, operations / peak)
        for line in lines.values():
            median = statistics.median(line.times)
            line.ratio = median / statistics.median(ours.times)
            line.fraction = roofline / median
            line.bytes_per_second = nbytes / median
            line.operations_per_second = operations / median
            say(describe(line))
        return list(lines.values())

    def prepared(
        self, shape: Shape, x: Float32, routings: list[Assignment], peers: list[Peer]
    ) -> dict[Peer, Line]:
        """Those that can, each output compared; moekit comes first."""
        file, out = self._folder / "inputs.npz", self._folder / "out.npy"
        experts = np.stack([routing.experts for routing in routings])
        weights = np.stack([routing.weights for routing in routings])
        np.savez(file, x=x, experts=experts, weights=weights)
        for library in {id(peer.library): peer.library for peer in peers}.values():
            with suppress(Missing):  # is told when it prepares
                library.ask("inputs", file=str(file))
        few = slice(0, 2)
        wanted = self._layer.reference(x[few], experts[0][few], weights[0][few])
        lines: dict[Peer, Line] = {}
        ours, tolerance = np.empty(0, np.float32), 0.0  # moekit's, which comes first
        for peer in peers:
            line = Line(shape.name, shape.experts, self._format, len(x), peer.name)
            try:
                peer.library.ask("prepare", peer=peer.index, out=str(out))
            except Missing as missing:
                say(f"skipped: {missing}")
                if peer.name == "moekit":
                    return {}
                continue
            values = np.load(out)
            line.error = nmse(values[few], wanted)
            if peer.name == "moekit":
                ours, tolerance = values, tolerated(self._format, line.error)
            line.distance = nmse(values, ours)
            line.same = line.error < tolerance and line.distance < tolerance
            lines[peer] = line
        return lines


def tolerated(format: str, own: float) -> float:
    """The NMSE that a peer may have. Where both round the same weights, each in its own way, their
    errors are alike and add up; rows or sums in 8 or 16 bits add a little in every format but f32.
    """
    return 4 * own + (1e-8 if format == "f32" else 5e-4)


def nmse(values: Float32, wanted: Float32) -> float:
    error = values.astype(np.float64) - wanted
    return float((error**2).sum() / (wanted.astype(np.float64) ** 2).sum())


def describe(line: Line) -> str:
    other = "" if line.same else f"   OTHER RESULTS: NMSE {line.error:.1e}, {line.distance:.1e}"
    return (
        f"  {line.peer:24}{statistics.median(line.times) * 1e3:10.2f} ms  "
        f"(min {min(line.times) * 1e3:8.2f})"
        f"{line.bytes_per_second / 1e9:7.1f} GB/s{line.operations_per_second / 1e9:8.0f} Gop/s"
        f"{line.fraction:7.0%} of limit{line.ratio:8.2f} x{other}"
    )


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
