"""The notebooks of the routing laboratory run from top to bottom; their claims are assertions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import moekit

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
# What a reader is to find in the printed text.
CLAIMS = {
    "01_route_one_token_by_hand": ["largest difference to the fused kernel", "SparseMixer"],
    "05_who_does_what": ["Clear in 4 of 4 layers", "Routing does not depend on the domain"],
    "06_collapse_and_the_bias_controller": ["effective experts: 2.0 of 16", "cost: KL"],
    "09_steer_edit_replay": ["mask the busiest", "share of the profile's experts"],
}


@pytest.mark.parametrize("name", CLAIMS)
def test_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib")
    package = str(Path(moekit.__file__).resolve().parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([package, os.environ.get("PYTHONPATH", "")]))
    path = NOTEBOOKS / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    committed = _text(notebook)
    for claim in CLAIMS[name]:
        assert claim in committed, "the notebook is committed with its outputs"
    assert path.stat().st_size < 400_000
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    for claim in CLAIMS[name]:
        assert claim in _text(notebook)


def _text(notebook: object) -> str:
    return "".join(
        output.get("text", "")
        for cell in notebook.cells  # type: ignore[attr-defined]
        for output in cell.get("outputs", [])
        if output.output_type == "stream"
    )
