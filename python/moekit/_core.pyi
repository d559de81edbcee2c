"""
moekit's kernels. Use them through moekit.ops.
"""
from __future__ import annotations
import collections.abc
import numpy
import numpy.typing
import typing
__all__: list[str] = ['AttentionStep', 'ExpertBank', 'ExpertTally', 'ExpertsStep', 'Fingerprint', 'LatentStep', 'LimitProbe', 'Limits', 'LinearView', 'Measured', 'PackedWeight', 'RmsNormView', 'RouterRule', 'ThreadLimit', 'advance_states', 'attention', 'causal_conv', 'choose_tokens', 'clock_seconds', 'combine', 'compiler', 'cpu_name', 'decay_factors', 'dot_of', 'embed', 'format_names', 'gate', 'gated_rms_norm', 'ggml_grid', 'gptq_factor', 'gptq_format_names', 'grouped_matmul', 'hyper_connection', 'isa', 'keep_rows', 'last_level_cache_bytes', 'layer_norm', 'limit_capacity', 'matmul_each', 'measure_limits', 'mix_streams', 'moe_ffn', 'moe_ffn_plain', 'num_threads', 'packed_bytes', 'permute', 'plan', 'pool_windows', 'rms_norm', 'rope', 'rope_angles', 'route', 'runnable_isas', 'sample', 'select_keys', 'selective_scan', 'set_isa', 'set_num_threads', 'sparse_attention', 'time_step', 'weigh']
class ThreadLimit:
    """
    Inside, this thread's calls use at most so many.
    """
    def __enter__(self) -> None:
        ...
    def __exit__(self, arg0: typing.Any, arg1: typing.Any, arg2: typing.Any) -> None:
        ...
    def __init__(self, most: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
class RouterRule:
    def __init__(self, score: str, top_k: typing.SupportsInt | typing.SupportsIndex, groups: typing.SupportsInt | typing.SupportsIndex, top_groups: typing.SupportsInt | typing.SupportsIndex, group_score: str, group_fill: str, normalize: bool, normalize_eps: typing.SupportsFloat | typing.SupportsIndex, normalize_min: typing.SupportsFloat | typing.SupportsIndex, scale: typing.SupportsFloat | typing.SupportsIndex, jitter_eps: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    def with_top_k(self, top_k: typing.SupportsInt | typing.SupportsIndex) -> RouterRule:
        """
        The same rule with another K.
        """
    @property
    def groups(self) -> int:
        ...
    @property
    def top_groups(self) -> int:
        ...
    @property
    def top_k(self) -> int:
        ...
    @property
    def weighs_input(self) -> bool:
        ...
class ExpertTally:
    def __init__(self, layers: typing.SupportsInt | typing.SupportsIndex, experts: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def add_running(self, other: ExpertTally, tokens: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        Adds what the running pass of another tally has counted.
        """
    def count(self, layer: typing.SupportsInt | typing.SupportsIndex, experts: numpy.ndarray) -> None:
        """
        Counts the slots of experts [T, K] for a layer.
        """
    def discard(self) -> None:
        """
        Forgets what the running pass has counted.
        """
    def finish(self, tokens: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        The running pass is complete.
        """
    @property
    def counts(self) -> numpy.typing.NDArray[numpy.int64]:
        """
        int64 [layers, experts] of finished passes, a copy.
        """
    @property
    def tokens(self) -> int:
        ...
class PackedWeight:
    @staticmethod
    def gather(weights: collections.abc.Sequence[PackedWeight], experts: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]) -> PackedWeight:
        ...
    @staticmethod
    def repeating(pattern: PackedWeight, experts: typing.SupportsInt | typing.SupportsIndex, rows: typing.SupportsInt | typing.SupportsIndex, resident: typing.SupportsInt | typing.SupportsIndex) -> PackedWeight:
        """
        Weights for measurements; see csrc/moe/weights/packed_weight.h.
        """
    def __init__(self, formats: collections.abc.Sequence[str], experts: typing.SupportsInt | typing.SupportsIndex, rows: typing.SupportsInt | typing.SupportsIndex, cols: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def copy_bytes(self, expert: typing.SupportsInt | typing.SupportsIndex) -> numpy.typing.NDArray[numpy.uint8]:
        ...
    def fill(self, expert: typing.SupportsInt | typing.SupportsIndex, values: numpy.ndarray, first: typing.SupportsInt | typing.SupportsIndex | None) -> None:
        ...
    def fill_blocks(self, expert: typing.SupportsInt | typing.SupportsIndex, blocks: numpy.ndarray, first: typing.SupportsInt | typing.SupportsIndex | None) -> None:
        ...
    def fill_bytes(self, expert: typing.SupportsInt | typing.SupportsIndex, bytes: numpy.ndarray, begin: typing.SupportsInt | typing.SupportsIndex | None) -> None:
        ...
    def fill_gptq(self, expert: typing.SupportsInt | typing.SupportsIndex, values: numpy.ndarray, factor: numpy.ndarray, order: numpy.ndarray, refit: bool) -> None:
        ...
    def row_step(self, expert: typing.SupportsInt | typing.SupportsIndex) -> int:
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
class Fingerprint:
    """
    A number of each of some equal pieces of a tensor (a DLPack capsule), to notice writes. It keeps the address alone: whoever asks knows that the memory lives.
    """
    def __init__(self, capsule: typing.Any, pieces: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def same(self) -> bool:
        ...
class ExpertBank:
    def __init__(self, gate: PackedWeight | None, up: PackedWeight, down: PackedWeight, gate_bias: numpy.ndarray | None, up_bias: numpy.ndarray | None, down_bias: numpy.ndarray | None, activation: str, limit: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
class LinearView:
    """
    A packed matrix and its bias.
    """
    def __init__(self, weight: PackedWeight, bias: numpy.ndarray | None) -> None:
        ...
class RmsNormView:
    """
    rms_norm's arguments.
    """
    def __init__(self, weight: numpy.ndarray | None, eps: typing.SupportsFloat | typing.SupportsIndex, offset: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
class AttentionStep:
    """
    What attention adds to a token's row, its norm included.
    """
    def __init__(self, norm: RmsNormView, q: LinearView, k: LinearView, v: LinearView, o: LinearView, q_norm: RmsNormView | None, k_norm: RmsNormView | None, heads: typing.SupportsInt | typing.SupportsIndex, kv_heads: typing.SupportsInt | typing.SupportsIndex, interleaved: bool, scale: typing.SupportsFloat | typing.SupportsIndex, softcap: typing.SupportsFloat | typing.SupportsIndex, window: typing.SupportsInt | typing.SupportsIndex, chunk: typing.SupportsInt | typing.SupportsIndex, sinks: numpy.ndarray | None) -> None:
        ...
    def run(self, x: numpy.ndarray, angles: tuple[numpy.ndarray, numpy.ndarray] | None, keys: numpy.ndarray, values: numpy.ndarray, key_scales: numpy.ndarray | None, value_scales: numpy.ndarray | None, position: typing.SupportsInt | typing.SupportsIndex) -> numpy.typing.NDArray[numpy.float32]:
        """
        x [1, H]; the caches [room, heads, dim] with scales [room, heads] or None.
        """
class LatentStep:
    """
    What latent attention adds to a token's row, its norm included.
    """
    def __init__(self, norm: RmsNormView, q: LinearView, kv_a: LinearView, kv_norm: RmsNormView, key_up: PackedWeight, value_up: PackedWeight, o: LinearView, q_a: LinearView | None, q_norm: RmsNormView | None, interleaved: bool, scale: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    def run(self, x: numpy.ndarray, angles: tuple[numpy.ndarray, numpy.ndarray] | None, entries: numpy.ndarray, scales: numpy.ndarray | None, position: typing.SupportsInt | typing.SupportsIndex) -> numpy.typing.NDArray[numpy.float32]:
        """
        x [1, H]; the cache [room, 1, L + R] with scales [room, 1] or None.
        """
class ExpertsStep:
    """
    x + added and what the experts add to it, their norm and router included.
    """
    def __init__(self, norm: RmsNormView, router: LinearView, rule: RouterRule, select_bias: numpy.ndarray | None, experts: ExpertBank, shared: ExpertBank | None, shared_gate: LinearView | None, compute: str) -> None:
        ...
    def run(self, x: numpy.ndarray, added: numpy.ndarray, tally: ExpertTally | None, layer: typing.SupportsInt | typing.SupportsIndex) -> tuple[numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.int32], numpy.typing.NDArray[numpy.float32]]:
        """
        x, added [1, H] -> (rows [1, H], experts [1, K], weights [1, K]).
        """
class LimitProbe:
    def __init__(self, bytes: typing.SupportsInt | typing.SupportsIndex, clock: str) -> None:
        ...
    def multiply_peak(self, dot: str) -> float:
        ...
    def read_bandwidth(self) -> float:
        ...
    @property
    def bytes(self) -> int:
        ...
class Measured:
    @property
    def best(self) -> float:
        ...
    @property
    def median(self) -> float:
        ...
class Limits:
    def multiply_peak(self, dot: str) -> Measured:
        ...
    @property
    def read_bandwidth(self) -> Measured:
        ...
    @property
    def threads(self) -> int:
        ...
def advance_states(op: str, query: numpy.ndarray, key: numpy.ndarray, value: numpy.ndarray, decay: numpy.ndarray, scale: numpy.ndarray | None, skip: numpy.ndarray | None, delta: bool, state: numpy.ndarray | None) -> tuple[numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.float32]]:
    ...
def attention(op: str, q: numpy.ndarray, q_tail: numpy.ndarray | None, k: numpy.ndarray, v: numpy.ndarray, scale: typing.SupportsFloat | typing.SupportsIndex, causal: bool, first_position: typing.SupportsInt | typing.SupportsIndex, window: typing.SupportsInt | typing.SupportsIndex, chunk: typing.SupportsInt | typing.SupportsIndex, softcap: typing.SupportsFloat | typing.SupportsIndex, sinks: numpy.ndarray | None, bias: numpy.ndarray | None, key_mask: numpy.ndarray | None, k_scales: numpy.ndarray | None = None, v_scales: numpy.ndarray | None = None) -> numpy.typing.NDArray[numpy.float32]:
    """
    Softmax attention; see moekit.ops.attention.
    """
def causal_conv(x: numpy.ndarray, weight: numpy.ndarray, bias: numpy.ndarray | None, state: numpy.ndarray | None, activation: str) -> tuple[numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.float32]]:
    ...
def choose_tokens(scores: numpy.ndarray, capacity: typing.SupportsInt | typing.SupportsIndex) -> numpy.typing.NDArray[numpy.bool]:
    ...
def clock_seconds(clock: str) -> float:
    ...
def combine(y: numpy.ndarray, rows: numpy.ndarray, slots: numpy.ndarray, weights: numpy.ndarray) -> numpy.typing.NDArray[numpy.float32]:
    ...
def compiler() -> str:
    """
    The compiler that built the core.
    """
def cpu_name() -> str:
    ...
def decay_factors(x: numpy.ndarray, rate: numpy.ndarray, bias: numpy.ndarray | None, low: typing.SupportsFloat | typing.SupportsIndex, high: typing.SupportsFloat | typing.SupportsIndex, bound: typing.SupportsFloat | typing.SupportsIndex) -> tuple[numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.float32]]:
    ...
def dot_of(format: str, rows: typing.SupportsInt | typing.SupportsIndex, cols: typing.SupportsInt | typing.SupportsIndex, compute: str) -> str:
    """
    The dot product that a matrix of this format is multiplied with.
    """
def embed(table: numpy.ndarray, ids: numpy.ndarray) -> numpy.typing.NDArray[numpy.float32]:
    ...
def format_names() -> list[str]:
    ...
def gate(x: numpy.ndarray | None, gate: numpy.ndarray, activation: str) -> numpy.typing.NDArray[numpy.float32]:
    ...
def gated_rms_norm(x: numpy.ndarray, gate: numpy.ndarray, weight: numpy.ndarray, eps: typing.SupportsFloat | typing.SupportsIndex, activation: str, gate_first: bool, groups: typing.SupportsInt | typing.SupportsIndex) -> numpy.typing.NDArray[numpy.float32]:
    ...
def ggml_grid(name: str) -> numpy.typing.NDArray[numpy.int8]:
    """
    Int8 [points, 4 or 8]: what the codes of ggml's IQ types stand for; eight times iq1's.
    """
def gptq_factor(hessian: numpy.ndarray, order: numpy.ndarray, damp: typing.SupportsFloat | typing.SupportsIndex) -> typing.Any:
    """
    Float32 [n, n], or None where the damped matrix is not positive definite.
    """
def gptq_format_names() -> list[str]:
    ...
def grouped_matmul(x: numpy.ndarray, weight: PackedWeight, offsets: numpy.ndarray, compute: str) -> numpy.typing.NDArray[numpy.float32]:
    ...
def hyper_connection(mixes: numpy.ndarray, base: numpy.ndarray, scales: numpy.ndarray, streams: typing.SupportsInt | typing.SupportsIndex, iterations: typing.SupportsInt | typing.SupportsIndex, eps: typing.SupportsFloat | typing.SupportsIndex) -> tuple[numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.float32]]:
    """
    How streams are read, written and mixed; see moekit.ops.hyper_connection.
    """
def isa() -> str:
    """
    The instruction set in use.
    """
def keep_rows(rows: numpy.ndarray, kept: numpy.ndarray, scales: numpy.ndarray | None) -> None:
    """
    Rounds rows [T, heads, dim] into a cache's; int8 ones with scales [T, heads].
    """
def last_level_cache_bytes() -> int:
    ...
def layer_norm(x: numpy.ndarray, weight: numpy.ndarray | None, bias: numpy.ndarray | None, eps: typing.SupportsFloat | typing.SupportsIndex, offset: typing.SupportsFloat | typing.SupportsIndex, residual: numpy.ndarray | None) -> typing.Any:
    """
    As rms_norm.
    """
def limit_capacity(experts: numpy.ndarray, expert_count: typing.SupportsInt | typing.SupportsIndex, capacity: typing.SupportsInt | typing.SupportsIndex, ranking: numpy.ndarray | None) -> tuple[numpy.typing.NDArray[numpy.int32], int]:
    ...
def matmul_each(x: numpy.ndarray, weights: collections.abc.Sequence[PackedWeight], biases: collections.abc.Sequence[numpy.ndarray | None], compute: str) -> list[numpy.typing.NDArray[numpy.float32]]:
    ...
def measure_limits(bytes: typing.SupportsInt | typing.SupportsIndex, passes: typing.SupportsInt | typing.SupportsIndex, clock: str) -> Limits:
    ...
def mix_streams(streams: numpy.ndarray, weights: numpy.ndarray, added: numpy.ndarray | None, factors: numpy.ndarray | None) -> numpy.typing.NDArray[numpy.float32]:
    """
    Weighted sums of streams; see moekit.ops.mix_streams.
    """
def moe_ffn(x: numpy.ndarray, experts: numpy.ndarray, weights: numpy.ndarray, weighs_input: bool, bank: ExpertBank, shared: ExpertBank | None, shared_scale: numpy.ndarray | None, compute: str, tally: ExpertTally | None, layer: typing.SupportsInt | typing.SupportsIndex) -> numpy.typing.NDArray[numpy.float32]:
    ...
def moe_ffn_plain(x: typing.Any, experts: typing.Any, weights: typing.Any, weighs_input: bool, bank: ExpertBank, out: typing.Any, threads: typing.SupportsInt | typing.SupportsIndex) -> None:
    """
    moe_ffn from and to the memory of another library, as DLPack capsules, on no more threads than that library uses.
    """
def num_threads() -> int:
    ...
def packed_bytes(format: str, rows: typing.SupportsInt | typing.SupportsIndex, cols: typing.SupportsInt | typing.SupportsIndex) -> int:
    """
    Bytes of one packed matrix.
    """
def permute(x: numpy.ndarray, rows: numpy.ndarray) -> numpy.typing.NDArray[numpy.uint8]:
    """
    Rows of bytes, gathered.
    """
def plan(experts: numpy.ndarray, expert_count: typing.SupportsInt | typing.SupportsIndex) -> tuple[numpy.typing.NDArray[numpy.int64], numpy.typing.NDArray[numpy.int32], numpy.typing.NDArray[numpy.int32]]:
    """
    offsets, rows and slots of a Plan.
    """
def pool_windows(values: numpy.ndarray, gates: numpy.ndarray) -> numpy.typing.NDArray[numpy.float32]:
    """
    Gated sums of windows; see moekit.ops.pool_windows.
    """
def rms_norm(x: numpy.ndarray, weight: numpy.ndarray | None, eps: typing.SupportsFloat | typing.SupportsIndex, offset: typing.SupportsFloat | typing.SupportsIndex, residual: numpy.ndarray | None) -> typing.Any:
    """
    The normed rows; with a residual a pair: these and x + residual.
    """
def rope(x: numpy.ndarray, cos: numpy.ndarray, sin: numpy.ndarray, first: typing.SupportsInt | typing.SupportsIndex, interleaved: bool) -> numpy.typing.NDArray[numpy.float32]:
    ...
def rope_angles(positions: numpy.ndarray, frequencies: numpy.ndarray, factor: typing.SupportsFloat | typing.SupportsIndex) -> tuple[numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.float32]]:
    ...
def route(logits: numpy.ndarray, rule: RouterRule, select_bias: numpy.ndarray | None, noise: numpy.ndarray | None, mask: numpy.ndarray | None, check_finite: bool) -> tuple[numpy.typing.NDArray[numpy.int32], numpy.typing.NDArray[numpy.float32]]:
    ...
def runnable_isas() -> list[str]:
    """
    Instruction sets of this build that this machine runs, worst first.
    """
def sample(logits: numpy.ndarray, temperature: typing.SupportsFloat | typing.SupportsIndex, top_k: typing.SupportsInt | typing.SupportsIndex, top_p: typing.SupportsFloat | typing.SupportsIndex, min_p: typing.SupportsFloat | typing.SupportsIndex, seeds: numpy.ndarray, steps: numpy.ndarray) -> numpy.typing.NDArray[numpy.int64]:
    ...
def select_keys(queries: numpy.ndarray, weights: numpy.ndarray, keys: numpy.ndarray, visible: numpy.ndarray, k: typing.SupportsInt | typing.SupportsIndex) -> numpy.typing.NDArray[numpy.int32]:
    """
    The best keys of each query; see moekit.ops.select_keys.
    """
def selective_scan(x: numpy.ndarray, step: numpy.ndarray, rate: numpy.ndarray, b: numpy.ndarray, c: numpy.ndarray, skip: numpy.ndarray | None, state: numpy.ndarray | None) -> tuple[numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.float32]]:
    ...
def set_isa(name: str) -> None:
    ...
def set_num_threads(threads: typing.SupportsInt | typing.SupportsIndex) -> None:
    ...
def sparse_attention(op: str, q: numpy.ndarray, q_tail: numpy.ndarray | None, sources: collections.abc.Sequence[numpy.ndarray], value_dim: typing.SupportsInt | typing.SupportsIndex, selected: numpy.ndarray, scale: typing.SupportsFloat | typing.SupportsIndex, sinks: numpy.ndarray | None) -> numpy.typing.NDArray[numpy.float32]:
    """
    Attention over selected rows; see moekit.ops.sparse_attention.
    """
def time_step(x: numpy.ndarray, bias: numpy.ndarray | None, low: typing.SupportsFloat | typing.SupportsIndex, high: typing.SupportsFloat | typing.SupportsIndex) -> numpy.typing.NDArray[numpy.float32]:
    ...
def weigh(logits: numpy.ndarray, rule: RouterRule, experts: numpy.ndarray, noise: numpy.ndarray | None, mask: numpy.ndarray | None) -> numpy.typing.NDArray[numpy.float32]:
    ...
