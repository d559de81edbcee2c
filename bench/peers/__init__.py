"""Other libraries' mixture-of-experts layers, each behind the same few methods.

A module here is a library; it offers `load(threads) -> list[Peer]` or raises Missing with one line
that says how to get it. Each runs in a process of its own (`worker.py`), so none has to agree with
the others' versions of torch or threads; only moekit's own needs moekit.
"""

from __future__ import annotations

LIBRARIES = {
    "moekit": None,
    "torch": "MOEKIT_TORCH_PYTHON",
    "transformers": "MOEKIT_TRANSFORMERS_PYTHON",
    "ggml": "MOEKIT_LLAMA_PYTHON",
    "ik": "MOEKIT_IK_PYTHON",
    "vllm": "MOEKIT_VLLM_PYTHON",
    "zentorch": "MOEKIT_ZENTORCH_PYTHON",
    "kt": "MOEKIT_KT_PYTHON",
    "onnxruntime": "MOEKIT_ONNXRUNTIME_PYTHON",
}
"""`<name>_peer.py`, and the variable that names an interpreter which has the library."""
