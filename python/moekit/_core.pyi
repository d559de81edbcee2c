"""
moekit's kernels. Use them through moekit.ops.
"""
from __future__ import annotations
import collections.abc
import numpy
import numpy.typing
import typing
__all__: list[str] = ['ExpertBank', 'PackedWeight', 'attention', 'cpu_name', 'format_names', 'grouped_matmul', 'isa', 'matmul', 'moe_ffn', 'num_threads', 'packed_bytes', 'runnable_isas', 'set_isa', 'set_num_threads']
class PackedWeight:
    def __init__(self, formats: collections.abc.Sequence[str], experts: typing.SupportsInt | typing.SupportsIndex, rows: typing.SupportsInt | typing.SupportsIndex, cols: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def fill(self, expert: typing.SupportsInt | typing.SupportsIndex, values: numpy.ndarray) -> None:
        ...
    def unpack(self, expert: typing.SupportsInt | typing.SupportsIndex) -> numpy.typing.NDArray[numpy.float32]:
        ...
    @property
    def cols(self) -> int:
        ...
    @property
    def experts(self) -> int:
        ...
    @property
    def formats(self) -> list[str]:
        ...
    @property
    def nbytes(self) -> int:
        ...
    @property
    def rows(self) -> int:
        ...
class ExpertBank:
    def __init__(self, gate: PackedWeight, up: PackedWeight, down: PackedWeight, gate_bias: numpy.ndarray | None, up_bias: numpy.ndarray | None, down_bias: numpy.ndarray | None, activation: str, limit: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
def attention(op: str, q: numpy.ndarray, q_tail: numpy.ndarray | None, k: numpy.ndarray, v: numpy.ndarray, scale: typing.SupportsFloat | typing.SupportsIndex, causal: bool, first_position: typing.SupportsInt | typing.SupportsIndex, window: typing.SupportsInt | typing.SupportsIndex, chunk: typing.SupportsInt | typing.SupportsIndex, softcap: typing.SupportsFloat | typing.SupportsIndex, sinks: numpy.ndarray | None, bias: numpy.ndarray | None, key_mask: numpy.ndarray | None) -> numpy.typing.NDArray[numpy.float32]:
    """
    Softmax attention; see moekit.ops.attention.
    """
def cpu_name() -> str:
    ...
def format_names() -> list[str]:
    ...
def grouped_matmul(x: numpy.ndarray, weight: PackedWeight, offsets: numpy.ndarray, compute: str) -> numpy.typing.NDArray[numpy.float32]:
    ...
def isa() -> str:
    """
    The instruction set in use.
    """
def matmul(x: numpy.ndarray, weight: PackedWeight, bias: numpy.ndarray | None, compute: str) -> numpy.typing.NDArray[numpy.float32]:
    ...
def moe_ffn(x: numpy.ndarray, experts: numpy.ndarray, weights: numpy.ndarray, weighs_input: bool, bank: ExpertBank, shared: ExpertBank, shared_scale: numpy.ndarray | None, compute: str) -> numpy.typing.NDArray[numpy.float32]:
    ...
def num_threads() -> int:
    ...
def packed_bytes(format: str, rows: typing.SupportsInt | typing.SupportsIndex, cols: typing.SupportsInt | typing.SupportsIndex) -> int:
    """
    Bytes of one packed matrix.
    """
def runnable_isas() -> list[str]:
    """
    Instruction sets of this build that this machine runs, worst first.
    """
def set_isa(name: str) -> None:
    ...
def set_num_threads(threads: typing.SupportsInt | typing.SupportsIndex) -> None:
    ...
