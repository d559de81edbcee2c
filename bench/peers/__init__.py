"""Other libraries' mixture-of-experts layers, each behind the same few methods.

A module here is a library; it offers `load(threads) -> list[Peer]` or raises Missing with one line
that says how to get it.
"""

MODULES = ("moekit_peer", "torch_peer", "transformers_peer", "ggml_peer", "onnxruntime_peer")
