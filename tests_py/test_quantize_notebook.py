"""Notebook 03 runs from top to bottom; its last cell asserts what the project promises."""

import os
from pathlib import Path

import pytest

import moekit

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "03_quantise_a_mixture.ipynb"


@pytest.mark.slow
def test_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib")
    package = str(Path(moekit.__file__).resolve().parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([package, os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    (tmp_path / "dense").symlink_to(NOTEBOOK.parent / "dense")
    client = nbclient.NotebookClient(
        notebook, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    text = "".join(
        output.get("text", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream"
    )
    assert "holds  GPTQ beats rounding to nearest on unseen text" in text
    assert "holds  a budget is no worse than one format of the same bytes" in text
    assert "router alone int8" in text and "router alone fp8" in text
    assert "  mixtures stand 4 bits better than dense models of the active size" in text
    for name in ("agreement", "int4", "roles", "pareto", "dense"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_notebook_is_as_it_was_executed() -> None:
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    errors = [o for cell in code for o in cell.outputs if o.output_type == "error"]
    assert errors == [] and NOTEBOOK.stat().st_size < 600_000
