"""Fixtures that several test files share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def checkpoint_maker(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Any, Path]]:
    """Call with a family and changes to its configuration: (transformers' model, its directory).

    Each combination is made once for the whole session; tests must not change the files.
    """
    import checkpoints

    made: dict[str, tuple[Any, Path]] = {}

    def make(family: str, seed: int = 0, **changes: Any) -> tuple[Any, Path]:
        key = repr((family, seed, sorted(changes.items())))
        if key not in made:
            model = checkpoints.tiny_model(family, seed, **changes)
            made[key] = model, checkpoints.save(model, tmp_path_factory.mktemp(family))
        return made[key]

    return make


@pytest.fixture(scope="session")
def talker_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random DeepSeek-V3 that has a tokenizer and a chat template."""
    import checkpoints

    path = tmp_path_factory.mktemp("talker")
    checkpoints.save_tokenizer(path)
    model = checkpoints.tiny_model("deepseek_v3", seed=5, vocab_size=320, n_routed_experts=7)
    return checkpoints.save(model, path)


@pytest.fixture(scope="session")
def talker(talker_path: Path) -> Any:
    """That model, loaded."""
    import moekit

    return moekit.load(talker_path)
