"""The shipped checkpoint as transformers sees it: complete, small, balanced, true to its card."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from moekit.demo import demo_path

DOMAINS = ("english", "german", "python", "c")
LIMIT_BYTES = 15 * 1000 * 1000


def card_figures() -> dict[str, float]:
    """Bits per byte of ``texts/<domain>.txt`` as the model card states them."""
    card = (demo_path() / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `texts/(\w+)\.txt` \| ([0-9.]+) \|", card, re.MULTILINE)
    return {domain: float(value) for domain, value in rows}


def test_everything_that_ships_stays_under_fifteen_megabytes() -> None:
    files = [f for f in demo_path().rglob("*") if f.is_file() and "__pycache__" not in f.parts]
    assert sum(f.stat().st_size for f in files) <= LIMIT_BYTES


def test_config_describes_a_real_mixture_of_experts() -> None:
    config = json.loads((demo_path() / "config.json").read_text())
    assert config["architectures"] == ["DeepseekV3ForCausalLM"]
    assert config["n_routed_experts"] >= 32
    assert config["num_experts_per_tok"] == 4
    assert config["n_shared_experts"] == 1
    assert (config["scoring_func"], config["topk_method"]) == ("sigmoid", "noaux_tc")


@pytest.mark.parametrize("domain", DOMAINS)
def test_texts_are_short_and_listed_with_their_licence(domain: str) -> None:
    text = (demo_path() / "texts" / f"{domain}.txt").read_bytes()
    assert 4_000 < len(text) <= 8_192
    assert f"`texts/{domain}.txt`" in (demo_path() / "SOURCES.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any, dict[str, Any]]:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)
    model, info = transformers.DeepseekV3ForCausalLM.from_pretrained(
        demo_path(),
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
        output_loading_info=True,
    )
    return model.eval(), transformers.AutoTokenizer.from_pretrained(demo_path()), info


def test_transformers_finds_every_tensor_and_no_other(
    loaded: tuple[Any, Any, dict[str, Any]],
) -> None:
    _, _, info = loaded
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]


@pytest.mark.parametrize("domain", DOMAINS)
def test_tokenizer_is_lossless(loaded: tuple[Any, Any, dict[str, Any]], domain: str) -> None:
    _, tokenizer, _ = loaded
    text = (demo_path() / "texts" / f"{domain}.txt").read_text(encoding="utf-8")
    for sample in (text, "naïve 東京 🙂\t\x00 ½", " two  spaces\r\n"):
        ids = tokenizer(sample, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == sample


def bits_and_experts(model: Any, tokenizer: Any, text: str) -> tuple[float, list[Any]]:
    """Bits per byte over independent windows of 512 tokens, and the experts chosen per layer.

    Each window starts with ``<|end|>`` in front of it, which the model read as "a text begins".
    """
    torch = pytest.importorskip("torch")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    chosen: list[list[Any]] = []
    gates = [layer.mlp.gate for layer in model.model.layers if hasattr(layer.mlp, "gate")]
    hooks = [
        gate.register_forward_hook(lambda _m, _i, out, kept=kept: kept.append(out[2]))
        for gate, kept in zip(gates, [chosen.append([]) or chosen[-1] for _ in gates], strict=True)
    ]
    nats = 0.0
    with torch.no_grad():
        for at in range(0, len(ids), 511):
            window = torch.tensor([[tokenizer.eos_token_id, *ids[at : at + 511]]])
            logits = model(window).logits[0, :-1]
            goal = window[0, 1:]
            nats += torch.nn.functional.cross_entropy(logits, goal, reduction="sum").item()
    for hook in hooks:
        hook.remove()
    return nats / math.log(2) / len(text.encode()), [torch.cat(kept) for kept in chosen]


def test_bits_per_byte_and_balance_are_those_of_the_card(
    loaded: tuple[Any, Any, dict[str, Any]],
) -> None:
    model, tokenizer, _ = loaded
    card = card_figures()
    assert set(card) == set(DOMAINS)
    used = [set() for _ in range(4)]
    for domain in DOMAINS:
        text = (demo_path() / "texts" / f"{domain}.txt").read_text(encoding="utf-8")
        value, experts = bits_and_experts(model, tokenizer, text)
        assert value <= card[domain] * 1.05, domain
        for layer, ids in enumerate(experts):
            used[layer] |= set(ids.flatten().tolist())
    # No dead expert: over these few thousand tokens each of them is chosen somewhere.
    assert all(len(layer) == model.config.n_routed_experts for layer in used)


def test_demo_path_is_the_directory_of_the_checkpoint() -> None:
    assert isinstance(demo_path(), Path)
    assert (demo_path() / "model.safetensors").is_file()
