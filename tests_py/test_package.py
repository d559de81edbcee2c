"""What `pip install .` puts on a machine. Skipped where moekit is imported from its source tree."""

import importlib.metadata
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import moekit
from moekit import _core


@pytest.fixture(scope="module")
def installed() -> list[str]:
    try:
        distribution = importlib.metadata.distribution("moekit")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("moekit is not installed")
    if Path(str(distribution.locate_file("moekit/__init__.py"))) != Path(moekit.__file__):
        pytest.skip("moekit is imported from its source tree")
    return [file.as_posix() for file in distribution.files or []]


def test_everything_a_user_needs_is_there(installed):
    for name in (
        "py.typed",
        "_core.pyi",
        "demo/config.json",
        "demo/model.safetensors",
        "demo/tokenizer.json",
        "demo/LICENSE.md",
    ):
        assert f"moekit/{name}" in installed
    assert any(name.endswith("moekit") and "/bin/" in name for name in installed)


def test_nothing_else_is_there(installed):
    strays = [
        name
        for name in installed
        if re.search(r"training/|(^|/)tests?_|\.(cpp|h|o|a|cmake)$|gtest|moe_tests", name)
    ]
    assert strays == []
    tops = {name.split("/")[0] for name in installed} - {".."}
    assert tops == {"moekit", f"moekit-{moekit.__version__}.dist-info"}


def test_the_version_is_one():
    try:
        assert importlib.metadata.version("moekit") == moekit.__version__
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("moekit is not installed")


@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs binutils")
def test_the_module_links_what_every_machine_has():
    """One OpenMP runtime in a process: torch brings a libgomp under the same SONAME."""
    headers = subprocess.run(
        ["objdump", "-p", _core.__file__], capture_output=True, text=True, check=True
    ).stdout
    needed = set(re.findall(r"NEEDED\s+(\S+)", headers))
    assert "libgomp.so.1" in needed
    system = r"lib(gomp|stdc\+\+|gcc_s|m|c|pthread)\.so\.\d|ld-linux.*"
    assert [name for name in needed if not re.fullmatch(system, name)] == []
    assert "RPATH" not in headers
    assert "RUNPATH" not in headers
