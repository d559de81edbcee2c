"""Fields of a config.json that are missing or absurd: refused by a message that names them, or
harmless; never another kind of failure, and never memory that follows a number in a file."""

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import TABLES
from grouped_families import CASES, FIELDS

import moekit as mk

# What strangers' files have had, or could have, where something else belongs.
ABSURD: list[Any] = [
    *(-1, 0, 2**40, 10**400, 1e300, "x", [], {"rope_type": "yarn"}),
]
MISSING = object()


def variants(fields: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(the path of the field, the configuration with one value replaced or left out)."""
    for name, value in fields.items():
        for absurd in (*ABSURD, MISSING):
            changed = {k: v for k, v in fields.items() if k != name or absurd is not MISSING}
            if absurd is not MISSING:
                changed[name] = absurd
            yield name, changed
        if isinstance(value, dict):
            for path, inner in variants(value):
                yield f"{name}.{path}", {**fields, name: inner}


@pytest.mark.parametrize("family", [family for table in TABLES for family in table])
def test_absurd_fields_are_refused_by_name_or_harmless(
    checkpoint_maker: Any, tmp_path: Path, family: str
) -> None:
    changes = next((changes for name, changes in CASES[::-1] if name == family), {})
    path = Path(shutil.copytree(checkpoint_maker(family, 0, **changes)[1], tmp_path / "copy"))
    fields = json.loads((path / "config.json").read_text())
    refused: dict[str, str] = {}
    for name, changed in variants(fields):
        (path / "config.json").write_text(json.dumps(changed))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                model = mk.load(path)
                model.forward([1, 2, 3])
        except mk.FileError as problem:
            refused[name] = str(problem)
    assert len(refused) > 10
    # By the name of the field, or of a tensor whose shape no longer agrees with it.
    assert {name for name, text in refused.items() if str(path) not in text} == set()
    (path / "config.json").write_text(json.dumps(fields))
    mk.load(path)


@pytest.mark.parametrize(
    ("family", "field"),
    [
        *((family, "hidden_size") for family in FIELDS if family != "dbrx"),
        *((family, "vocab_size") for family in FIELDS),
        ("dbrx", "d_model"),
        ("ernie4_5_moe", "moe_num_experts"),
        ("hunyuan_v1_moe", "moe_topk"),
        ("glm4_moe", "n_routed_experts"),
        ("qwen2_moe", "shared_expert_intermediate_size"),
        ("gpt_oss", "sliding_window"),
        ("phimoe", "intermediate_size"),
    ],
)
def test_a_missing_field_is_named(
    checkpoint_maker: Any, tmp_path: Path, family: str, field: str
) -> None:
    path = Path(shutil.copytree(checkpoint_maker(family, 0)[1], tmp_path / "copy"))
    fields = json.loads((path / "config.json").read_text())
    del fields[field]
    (path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(mk.FileError, match=rf"{field} is missing; .* is required"):
        mk.load(path)
