"""The small DeepSeek-V3 that ships with the package: an ordinary Hugging Face checkpoint.

``README.md`` in this directory is its model card; ``training/`` made it and is never imported.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["demo_path"]


def demo_path() -> Path:
    """Directory of the demo checkpoint: config, weights, tokenizer, held-out ``texts/``."""
    return Path(__file__).resolve().parent
