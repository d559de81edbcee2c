"""The rules that keep the tree simple: who may include whom, and what may stand where.

The layers of the Python package are import-linter's contract in pyproject.toml (`make lint`).
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = ROOT / "csrc/moe"
MODULES = ("base", "quant", "simd", "kernels", "weights", "ops")  # each may include those before it
FOLDERS = ("csrc", "python", "tests_cpp", "tests_py", "bench")
CODE = {".h", ".cpp", ".inc", ".py", ".cmake"}
COMMENTS_AND_TEXT = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.DOTALL)

pytestmark = pytest.mark.skipif(not CORE.is_dir(), reason="needs the source tree")


def files(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from (p for p in sorted((ROOT / folder).rglob("*")) if p.suffix in CODE)


def offenders(pattern: str, folder: str, allowed: tuple[str, ...] = ()) -> list[str]:
    """Lines of code (no comments, no string literals in C++) that match, outside of `allowed`."""
    found = []
    for path in files(folder):
        name = path.relative_to(ROOT).as_posix()
        text = path.read_text()
        if path.suffix != ".py":
            text = COMMENTS_AND_TEXT.sub(lambda m: m[0] if "#include" in m[0] else "", text)
        hits = [line.strip() for line in text.splitlines() if re.search(pattern, line)]
        if not name.startswith(allowed or ("\0",)):
            found += [f"{name}: {line}" for line in hits]
    return found


def test_a_module_includes_itself_and_what_stands_before_it():
    wrong = []
    for path in files("csrc/moe"):
        module = path.relative_to(CORE).parts[0]
        assert module in MODULES, f"{path}: csrc/moe has no module '{module}'"
        for target in re.findall(r'#include "([^"]+)"', path.read_text()):
            parts = target.split("/")
            known = target == "moe_isas.inc" or (parts[0] == "moe" and parts[1] in MODULES)
            if not known or (parts[0] == "moe" and MODULES.index(parts[1]) > MODULES.index(module)):
                wrong.append(f"{path.relative_to(ROOT)} includes {target}")
    assert wrong == []


RULES = {
    "intrinsics stand in simd/ and kernels/": (
        r"immintrin|arm_neon|\b_mm\d*_|\b__m\d+",
        "csrc",
        ("csrc/moe/simd/", "csrc/moe/kernels/"),
    ),
    "OpenMP stands in base/parallel.cpp": (
        r"#pragma omp|omp\.h|\bomp_",
        "csrc",
        ("csrc/moe/base/parallel.cpp",),
    ),
    "pybind11 stands in bindings/": (r"pybind11|\bpy::", "csrc", ("csrc/bindings/",)),
    "the core never prints and never ends the process": (
        r"\b(?:printf|fprintf|puts|perror|abort|exit|_exit|_Exit|terminate|assert)\s*\("
        r"|\b(?:cout|cerr|clog)\b",
        "csrc",
        (),
    ),
    "matplotlib stands in analysis/plots.py": (
        r"^\s*(?:import|from) matplotlib",
        "python",
        ("python/moekit/analysis/plots.py",),
    ),
    "nothing loads a pickle or a checkpoint's own code": (
        r"pickle\.loads?\(|allow_pickle=True|auto_map\b.*import",
        "python",
        (),
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_rule(rule: str):
    assert offenders(*RULES[rule]) == []


def test_every_source_of_the_core_has_its_test():
    # isa/ is compiled once per instruction set; the tests of kernels/ walk through all of them.
    sources = (p.relative_to(CORE) for p in CORE.rglob("*.cpp") if p.parent.name != "isa")
    tests = {p: ROOT / "tests_cpp" / p.with_name(f"{p.stem}_test.cpp") for p in sources}
    assert [str(p) for p, test in tests.items() if not test.exists()] == []


def test_files_are_short():
    # Widths are the formatters' business.
    lengths = {p: len(p.read_text().splitlines()) for p in files(*FOLDERS)}
    assert {str(p): n for p, n in lengths.items() if n > 600} == {}


def test_names_say_what_a_thing_is():
    banned = {"utils", "util", "helper", "helpers", "common", "manager", "impl", "misc"}
    assert [
        str(p) for p in files(*FOLDERS) if banned & set(re.split(r"[._]", p.name.lower()))
    ] == []
    declared = r"\b(?:class|struct|namespace|def)\s+\w*(?i:utils|helper|manager|impl\b|misc)"
    assert offenders(declared, "csrc") + offenders(declared, "python") == []
