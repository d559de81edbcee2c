"""Notebook 07 runs from top to bottom: its assertions are the claims it corrects."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import moekit

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "07_what_a_model_costs.ipynb"


def test_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib")
    # the kernel starts elsewhere: hand it the package that is being tested
    package = str(Path(moekit.__file__).resolve().parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([package, os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    text = "".join(
        output.get("text", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream"
    )
    assert "$97.30 a month" in text
    assert "671,026,404,352" in text
    assert NOTEBOOK.stat().st_size < 300_000
