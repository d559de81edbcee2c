"""The shipped model as moekit runs it: transformers' logits, and text that is none of noise."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers

import moekit as mk

TEXTS = ["Once upon a time there was", "def main(argv):\n    ", "Es war einmal", "int main(void) {"]


@pytest.fixture(scope="module")
def theirs() -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        mk.demo_path(), dtype=torch.float32, attn_implementation="eager"
    )
    model.set_experts_implementation("eager")
    return model.eval()


@pytest.mark.parametrize("text", TEXTS)
def test_logits_are_those_of_transformers(theirs: Any, text: str) -> None:
    model = mk.demo_model(format="f32")
    assert model.tokenizer is not None
    ids = model.tokenizer.encode(text)
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(model.forward(ids), expected, rtol=0, atol=2e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(mk.demo_path())
    assert tokenizer(text)["input_ids"] == ids


@pytest.mark.parametrize("format", [None, "int8"])
def test_kept_and_quantised_weights_stay_near(theirs: Any, format: str | None) -> None:
    model = mk.demo_model(format)
    assert model.tokenizer is not None
    ids = model.tokenizer.encode(TEXTS[0])
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0].log_softmax(-1).numpy()
    logits = model.forward(ids).astype(np.float64)
    ours = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
    ours -= logits.max(-1, keepdims=True)
    divergence = (np.exp(expected) * (expected - ours)).sum(-1)
    assert divergence.max() < 0.05
