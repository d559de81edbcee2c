"""The README's Python runs as it stands, on the demo model instead of a path."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("example", range(len(EXAMPLES)))
def test_example(example: int):
    code = EXAMPLES[example].replace('mk.load("path/to/model", format="int8")', "mk.demo_model()")
    code = code.replace("max_new_tokens=64", "max_new_tokens=4")
    names: dict[str, object] = {}
    exec("import moekit as mk\n" + code, names)
    if example == 0:
        model, r = names["model"], names["r"]
        tokens = len(model.tokenizer.encode("Who works here?"))
        assert r.experts.shape[:2] == (tokens, len(model.moe_layers))
        assert r.counts.sum() == r.experts.size


def test_there_are_examples():
    assert len(EXAMPLES) >= 3
