"""Switch Transformers against transformers: both stacks, capacity, positions, generation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from checkpoints import rewrite_config, save
from family_checks import TOLERANCE, prompt_of
from transformers.models.switch_transformers import modeling_switch_transformers as theirs_code

import moekit as mk
from moekit import analysis
from moekit.nn import RelativeBias

FIELDS: dict[str, Any] = {
    "vocab_size": 97,
    "d_model": 36,
    "d_kv": 10,
    "d_ff": 40,
    "num_layers": 4,
    "num_decoder_layers": 4,
    "num_sparse_encoder_layers": 2,
    "num_sparse_decoder_layers": 2,
    "num_heads": 3,
    "num_experts": 5,
    "expert_capacity": 64,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": None,
}
CASES: list[dict[str, Any]] = [
    {},
    {"expert_capacity": 3},
    {"num_decoder_layers": 3, "num_sparse_decoder_layers": 3, "router_bias": True},
    {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12},
    {"tie_word_embeddings": False, "num_sparse_encoder_layers": 0, "layer_norm_epsilon": 1e-2},
    {"dense_act_fn": "gelu_new", "decoder_start_token_id": 7, "num_experts": 1},
]
NAMES = ["-".join(changes) or "plain" for changes in CASES]


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, tuple[Any, Path]] = {}

    def make(seed: int, **changes: Any) -> tuple[Any, Path]:
        key = repr((seed, changes))
        if key not in made:
            config = transformers.SwitchTransformersConfig(**{**FIELDS, **changes})
            torch.manual_seed(seed)
            model = transformers.SwitchTransformersForConditionalGeneration(config).eval()
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if parameter.unique().numel() == 1 or name.endswith("bias"):
                        parameter.add_(0.3 * torch.randn_like(parameter))
                    elif name.endswith(("shared.weight", "lm_head.weight")):
                        parameter.mul_(0.5)
            made[key] = model, save(model, tmp_path_factory.mktemp("switch"))
        return made[key]

    return make


def their_logits(model: Any, source: list[int], target: list[int]) -> np.ndarray:
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([target])
        ).logits
    return out[0].numpy()


def their_experts(model: Any, source: list[int], target: list[int]) -> list[np.ndarray]:
    """The expert of each token for each router, -1 where it has none: the encoder's first."""
    found: list[np.ndarray] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        chosen = output[0][0]
        found.append(np.where(chosen.any(-1), chosen.argmax(-1), -1))

    hooks = [
        module.register_forward_hook(keep)
        for module in model.modules()
        if type(module).__name__.endswith("Router")
    ]
    their_logits(model, source, target)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("changes", CASES, ids=NAMES)
def test_logits_and_experts_are_those_of_transformers(
    maker: Any, changes: dict[str, Any], seed: int
) -> None:
    theirs, path = maker(seed, **changes)
    source, target = prompt_of(seed, 29), [0, *prompt_of(seed + 9, 18)]
    model = mk.load(path)
    with model.record() as record:
        logits = model.forward(source, decoder_input_ids=target)
    expected = their_logits(theirs, source, target)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)
    chosen = their_experts(theirs, source, target)
    assert len(chosen) == len(record.layers)
    for place, experts in enumerate(chosen):
        rows = record.sequences == (0 if record.layers[place] < len(model.encoder) else 1)
        np.testing.assert_array_equal(record.experts[rows, place, 0], experts)
        assert (record.experts[~rows, place] == -1).all()
    if changes.get("expert_capacity") == 3:
        assert any((experts == -1).any() for experts in chosen), "no expert was ever full"
    assert model.forward(source, decoder_input_ids=target).tobytes() == logits.tobytes()
    replayed = model.forward(source, decoder_input_ids=target, routing=record)
    assert replayed.tobytes() == logits.tobytes()


@pytest.mark.parametrize("changes", CASES, ids=NAMES)
def test_greedy_tokens_are_those_of_transformers(maker: Any, changes: dict[str, Any]) -> None:
    theirs, path = maker(1, **changes)
    model = mk.load(path)
    prompts = [prompt_of(3, 14), prompt_of(4, 40), prompt_of(5, 1)]
    expected = []
    for prompt in prompts:
        out = theirs.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            decoder_start_token_id=theirs.config.decoder_start_token_id,
            max_new_tokens=12,
            do_sample=False,
        )
        expected.append(out[0, 1:].tolist())
    assert model.generate(prompts[0], max_new_tokens=12) == expected[0]
    assert model.generate(prompts, max_new_tokens=12) == expected
    assert list(model.stream(prompts[1], max_new_tokens=12)) == expected[1]


@pytest.mark.parametrize("changes", CASES, ids=NAMES)
def test_a_token_has_the_same_bytes_however_it_is_batched(
    maker: Any, changes: dict[str, Any]
) -> None:
    model = mk.load(maker(0, **changes)[1])
    sources = [prompt_of(i, n) for i, n in enumerate((17, 1, 6))]
    targets = [[0, *prompt_of(i + 5, n)] for i, n in enumerate((4, 11, 0))]
    alone = [
        model.forward(source, decoder_input_ids=target)
        for source, target in zip(sources, targets, strict=True)
    ]
    together = model.forward(sources, decoder_input_ids=targets)
    for ours, one in zip(together, alone, strict=True):
        assert ours.tobytes() == one.tobytes()
    if changes.get("expert_capacity") == 3:
        return  # a full expert looks at the tokens of the pass, by design
    cache = model.new_cache()
    parts = [model.forward(sources[1], decoder_input_ids=targets[1][:3], cache=cache)]
    assert cache.lengths == [3]
    fork = cache.fork()
    parts += [
        model.forward(decoder_input_ids=targets[1][a:b], cache=cache) for a, b in ((3, 4), (4, 12))
    ]
    assert np.concatenate(parts).tobytes() == alone[1].tobytes()
    other = model.forward(decoder_input_ids=targets[1][3:5], cache=fork)
    assert other.tobytes() == alone[1][3:5].tobytes()
    cache.truncate(5)
    again = model.forward(decoder_input_ids=targets[1][5:9], cache=cache)
    assert again.tobytes() == alone[1][5:9].tobytes()


def test_missing_and_repeated_sources_are_named(maker: Any) -> None:
    model = mk.load(maker(0)[1])
    first = model.forward([5, 6, 7])
    assert first.tobytes() == model.forward([5, 6, 7], decoder_input_ids=[0]).tobytes()
    assert model.forward(np.array([[5, 6], [8, 9]])).shape == (2, 1, 97)
    with pytest.raises(ValueError, match="ids is missing"):
        model.forward(decoder_input_ids=[0])
    with pytest.raises(ValueError, match="2 sources and 1 sequences"):
        model.forward([[5], [6]], decoder_input_ids=[0])
    cache = model.new_cache()
    model.forward([5, 6, 7], cache=cache)
    with pytest.raises(ValueError, match="remembers its source"):
        model.forward([5, 6, 7], cache=cache)
    with pytest.raises(ValueError, match="decoder_input_ids is missing"):
        model.forward(cache=cache)
    with pytest.raises(ValueError, match="token 97"):
        model.forward([5], decoder_input_ids=[97])


def test_routing_of_both_stacks_can_be_steered(maker: Any) -> None:
    model = mk.load(maker(1)[1])
    assert model.moe_layers == [1, 3, 5, 7]
    source, target = prompt_of(1, 20), [0, *prompt_of(2, 9)]
    with model.record() as record, model.intervene(mask={(3, 2), (5, 1)}, force={(7, 0)}):
        model.forward(source, decoder_input_ids=target)
    for layer, gone in ((3, 2), (5, 1)):
        assert not (record.experts[:, record.layer_index(layer)] == gone).any()
    answers = record.sequences == 1
    assert (record.experts[answers, record.layer_index(7), 0] == 0).all()
    with model.record(counters=True) as counters:
        model.generate(source, max_new_tokens=4)
    assert counters.counts.sum() == 2 * len(source) + 2 * 4


def test_measures_read_sources_and_predict_answers(maker: Any) -> None:
    """Ablation, intent and the controller of an encoder-decoder, against passes by hand."""
    model = mk.load(maker(1)[1])
    pairs = [(prompt_of(seed, 12 + seed), [*prompt_of(seed + 9, 5 + seed), 1]) for seed in range(3)]

    def losses(**changes: Any) -> np.ndarray:
        found = []
        for source, answer in pairs:
            with model.intervene(**changes):
                logits = model.forward(source, decoder_input_ids=[0, *answer[:-1]])
            x = logits.astype(np.float64)
            x -= np.log(np.exp(x).sum(axis=1, keepdims=True))
            found.append(-x[np.arange(len(answer)), answer])
        return np.concatenate(found)

    plain = losses()
    found = analysis.ablate(model, pairs, progress=False)
    assert found.tokens == len(plain)
    assert found.loss == pytest.approx(plain.mean(), rel=1e-6)
    assert np.nansum(np.abs(found.change)) > 0
    with model.record() as record:
        for source, answer in pairs:
            model.forward(source, decoder_input_ids=[0, *answer[:-1]])
    for row, layer in enumerate(found.layers):
        answers = layer >= len(model.encoder)
        tokens = sum(len(pair[int(answers)]) for pair in pairs)
        for expert in range(4):
            without = losses(mask={(int(layer), expert)})
            assert found.change[row, expert] == pytest.approx((without - plain).mean(), abs=1e-6)
            used = (record.experts[:, row] == expert).sum() / tokens
            assert found.used[row, expert] == pytest.approx(used)

    profiles = analysis.profile({"a": pairs[:2], "b": pairs[2:]}, model)
    report = analysis.intent(model, profiles["a"], pairs, strengths=(0, 2), experts=1)
    assert report.kl[0] == 0 and report.kl[1] > 0
    assert report.loss[0] == pytest.approx(plain.mean(), rel=1e-6)
    assert report.loss[1] == pytest.approx(losses(bias=profiles["a"], strength=2).mean(), rel=1e-6)
    assert report.share[1] >= report.share[0]

    stream = analysis.balance_stream(model, pairs, gamma=0.05, repeat=2)
    assert stream.kl.shape == (6,) and stream.kl[0] == 0 and stream.kl[-1] > 0
    for texts in ([prompt_of(1, 9)], [([1, 2],)], [([1, 2], [3], [4])]):
        with pytest.raises(ValueError, match=r"\[ablate\] texts\[0\].*pair \(source, answer\)"):
            analysis.ablate(model, texts, progress=False)
    with pytest.raises(ValueError, match="token 97"):
        analysis.ablate(model, [([1], [97])], progress=False)
    with pytest.raises(ValueError, match="empty"):
        analysis.ablate(model, [([1], [])], progress=False)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("buckets", "longest"), [(32, 128), (8, 12), (7, 9), (64, 1000)])
def test_distances_fall_into_the_buckets_of_transformers(
    bidirectional: bool, buckets: int, longest: int
) -> None:
    ours = RelativeBias(np.zeros((buckets, 1)), bidirectional=bidirectional, longest=longest)
    distances = np.arange(-1500, 1501)
    expected = theirs_code.SwitchTransformersAttention._relative_position_bucket(
        torch.tensor(distances), bidirectional, buckets, longest
    )
    np.testing.assert_array_equal(ours.buckets(distances), expected.numpy())


def test_a_saved_model_is_the_same_and_generation_config_names_its_start(
    maker: Any, tmp_path: Path
) -> None:
    model = mk.load(maker(1)[1])
    source, target = prompt_of(6, 12), [0, 4, 5]
    model.save(tmp_path / "saved")
    again = mk.load(tmp_path / "saved")
    expected = model.forward(source, decoder_input_ids=target).tobytes()
    assert again.forward(source, decoder_input_ids=target).tobytes() == expected
    (tmp_path / "saved/generation_config.json").write_text('{"decoder_start_token_id": 9}')
    other = mk.load(tmp_path / "saved")
    first = model.forward(source, decoder_input_ids=[9])
    assert other.forward(source).tobytes() == first.tobytes()
    (tmp_path / "saved/generation_config.json").write_text('{"decoder_start_token_id": 97}')
    with pytest.raises(mk.FileError, match="decoder_start_token_id"):
        mk.load(tmp_path / "saved")


def test_a_quantised_directory_is_the_quantised_model(maker: Any, tmp_path: Path) -> None:
    _, path = maker(0)
    model = mk.quantize(path, "int8", out=tmp_path / "q", progress=False)
    source, target = prompt_of(6, 12), [0, 4, 5]
    expected = model.forward(source, decoder_input_ids=target)
    again = mk.load(tmp_path / "q").forward(source, decoder_input_ids=target)
    assert again.tobytes() == expected.tobytes()
    exact = mk.load(path).forward(source, decoder_input_ids=target)
    assert expected.tobytes() != exact.tobytes(), "both stacks are the quantised ones"
    with pytest.raises(ValueError, match="encoder-decoder"):
        mk.quantize(path, "int4", [prompt_of(1, 50)], "gptq")


def test_faults_of_a_configuration_are_named(maker: Any, tmp_path: Path) -> None:
    _, path = maker(0)
    for file in path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for field, value in (
        ("dense_act_fn", "gated-gelu"),
        ("decoder_start_token_id", 97),
        ("relative_attention_num_buckets", 2),
        ("expert_capacity", 0),
    ):
        rewrite_config(tmp_path, **{field: value})
        with pytest.raises(mk.FileError, match=field):
            mk.load(tmp_path)
        rewrite_config(tmp_path, **{field: FIELDS.get(field, 32)})
        if field == "dense_act_fn":
            rewrite_config(tmp_path, dense_act_fn="relu")
