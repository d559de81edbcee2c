"""What a process may do around the kernels: force an instruction set, set threads, fork."""

import os
import subprocess
import sys

import numpy as np
import pytest

from moekit import _core, ops

ISA = "from moekit import _core; print(_core.isa())"


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_each_runnable_instruction_set_can_be_forced():
    names = _core.runnable_isas()
    assert names[0] == "scalar"
    for name in names:
        assert run(ISA, MOEKIT_ISA=name).stdout.strip() == name
    assert run(ISA, MOEKIT_ISA="").stdout.strip() == names[-1]


def test_an_unknown_instruction_set_is_named_in_the_error():
    result = run(ISA, MOEKIT_ISA="sse9")
    assert result.returncode == 1
    assert "RuntimeError: [isa] 'sse9' is not an instruction set of this build" in result.stderr
    assert "scalar" in result.stderr


def test_threads_come_from_the_environment_and_have_bounds():
    code = "from moekit import _core; print(_core.num_threads())"
    assert run(code, MOEKIT_NUM_THREADS="3").stdout.strip() == "3"
    before = _core.num_threads()
    for threads in (0, -1, 1025):
        with pytest.raises(ValueError, match=rf"\[set_num_threads\].* {threads}; 1 to 1024"):
            _core.set_num_threads(threads)
    assert _core.num_threads() == before


FORK = """
import os, signal
import numpy as np
from moekit import _core, ops
_core.set_num_threads(4)
weight = ops.pack(np.ones((256, 64), np.float32), format="f32")
x = np.ones((64, 64), np.float32)
parent = ops.matmul(x, weight)          # the team of threads exists from here on
child = os.fork()
if child == 0:
    signal.alarm(60)                    # a hang ends as a signal
    same = np.array_equal(ops.matmul(x, weight), parent) and _core.num_threads() == 1
    os._exit(0 if same else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), _core.num_threads())
"""


def test_a_forked_child_computes_on_one_thread():
    result = run(FORK)
    assert result.stdout.split() == ["0", "4"], result.stderr


def test_bytes_do_not_depend_on_threads():
    generator = np.random.default_rng(3)
    x = generator.normal(size=(33, 72)).astype(np.float32)
    weight = ops.pack(generator.normal(size=(40, 72)).astype(np.float32), format="int8")
    before = _core.num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            _core.set_num_threads(threads)
            results.append(ops.matmul(x, weight).tobytes())
    finally:
        _core.set_num_threads(before)
    assert len(set(results)) == 1
