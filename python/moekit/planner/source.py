"""Where a configuration comes from: a mapping, a built-in name, a config.json, a directory, a GGUF.

Nothing is downloaded and no weight is read: a directory gives its config.json, a GGUF file its
header.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from .fields import short

_MAX_CONFIG_BYTES = 16 << 20


@dataclass(frozen=True)
class Source:
    """A configuration with its name and where it is from."""

    config: Mapping[str, Any]
    name: str = ""
    origin: str = ""
    published: str = ""
    notes: list[str] = field(default_factory=list)


@cache
def catalog() -> dict[str, dict[str, Any]]:
    """The built-in configurations by name: title, aliases, published figures, source, config."""
    text = resources.files(__package__).joinpath("data/models.json").read_text(encoding="utf-8")
    entries: dict[str, dict[str, Any]] = json.loads(text)
    return entries


@cache
def _names() -> dict[str, str]:
    names = {}
    for name, entry in catalog().items():
        for alias in (name, entry["title"], *entry["aliases"]):
            names[_key(alias)] = name
    return names


def _key(name: str) -> str:
    """Case, spaces and separators do not matter in a name; a hub owner before a slash neither."""
    bare = name.strip().lower().rsplit("/", 1)[-1]
    return "".join(c for c in bare if c.isalnum() or c == ".").replace(".", "")


def _bare(key: str) -> str:
    """A name without what a release calls its further training: the shape is the same."""
    for ending in ("hf", "instruct", "base", "chat", "thinking"):
        key = key.removesuffix(ending)
    return key


def resolve(model: object) -> Source:
    """The configuration that `model` means; a ValueError says what was looked for."""
    if isinstance(model, Mapping):
        return Source(unwrap(model), _name_of(model), "mapping")
    if isinstance(model, os.PathLike):
        return _from_path(Path(model))
    if not isinstance(model, str) or not model.strip():
        raise ValueError(
            f"[plan_model] {short(model)} is no model; a configuration, a path or a built-in name "
            "is required"
        )
    path = Path(model)
    if _exists(path):
        return _from_path(path)
    if _key(model) == "demo":  # the model inside the package
        return _from_path(Path(str(resources.files("moekit").joinpath("demo"))))
    found = _names().get(_key(model)) or _names().get(_bare(_key(model)))
    if found is not None:
        entry = catalog()[found]
        return Source(entry["config"], entry["title"], entry["source"], entry["published"])
    if path.suffix in (".json", ".gguf") or model.startswith((".", "/", "~")):
        raise ValueError(f"[plan_model] {model} is no file or directory")
    near = get_close_matches(_key(model[:60]), _names(), 3, 0.5)
    hints = list(dict.fromkeys(_names()[key] for key in near))
    did = f" (near: {', '.join(hints)})" if hints else ""
    raise ValueError(
        f"[plan_model] {model[:60]!r} is neither a path nor a built-in name{did}; "
        f"built in are {', '.join(catalog())}"
    )


def _name_of(config: Mapping[str, Any]) -> str:
    name = config.get("_name_or_path")
    return name[:80] if isinstance(name, str) and name.isprintable() else ""


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long or with a NUL is no path
        return False


def _from_path(path: Path) -> Source:
    if path.is_dir():
        inner = path / "config.json"
        if not inner.is_file() and any(path.glob("*.gguf")):
            return Source(_gguf(path), path.resolve().name, str(path))
        if not inner.is_file():
            raise ValueError(f"[plan_model] {path} holds no config.json")
        return Source(read_config(inner), path.resolve().name, str(inner))
    if path.suffix == ".gguf":
        return Source(_gguf(path), path.stem, str(path))
    return Source(read_config(path), path.resolve().parent.name, str(path))


def _gguf(path: Path) -> Mapping[str, Any]:
    from .gguf_header import config_from_gguf

    return config_from_gguf(path)


def read_config(path: Path) -> Mapping[str, Any]:
    """A config.json as a checked object: bounded size, finite numbers, an object at the top."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ValueError(f"[plan_model] {path} cannot be read: {error.strerror}") from None
    if size > _MAX_CONFIG_BYTES:
        raise ValueError(f"[plan_model] {path} is larger than any configuration (16 MiB)")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"[plan_model] {path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, endless digits or nesting
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"[plan_model] {path} is no JSON: {detail[:120]}") from None
    if not isinstance(data, dict):
        raise ValueError(f"[plan_model] {path} holds a {type(data).__name__}; an object is needed")
    return unwrap(data)


def unwrap(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The text model of a multimodal wrapper (`text_config`), else the configuration itself.

    The wrapper decides about tied embeddings, since it owns the head.
    """
    text = config.get("text_config")
    if not isinstance(text, Mapping):
        return config
    inner = dict(text)
    inner.setdefault("model_type", config.get("model_type"))
    if "tie_word_embeddings" in config:
        inner["tie_word_embeddings"] = config["tie_word_embeddings"]
    return inner
