"""Writing a model: a directory that transformers loads, or a GGUF file that llama.cpp opens.

Both are written beside their place and moved there when they are whole, so that neither a full
disk nor an interrupt leaves half a model.
"""

import os
from typing import TYPE_CHECKING

from .directory import save_directory
from .gguf_file import save_gguf

if TYPE_CHECKING:
    from ..nn import Model

__all__ = ["save", "save_directory", "save_gguf"]


def save(model: "Model", path: str | os.PathLike[str], progress: bool | None = None) -> None:
    """Write `model`: a file where the name ends in `.gguf`, else a directory."""
    name = os.fsdecode(path)
    if name.endswith(".gguf"):
        save_gguf(model, name, progress)
    else:
        save_directory(model, name, progress)
