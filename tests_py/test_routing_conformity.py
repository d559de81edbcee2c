"""The conformity file: what its oracles say, and what moekit routes."""

import json

import numpy as np
import pytest
import routing_oracles

from moekit import ops

CASES = json.loads(routing_oracles.FILE.read_text())["cases"]
NAMES = [f"{i}-{case['rule']}" for i, case in enumerate(CASES)]


def test_the_file_is_what_the_oracles_say():
    expected = routing_oracles.conformity()["cases"]
    assert [case["rule"] for case in CASES] == [case["rule"] for case in expected]
    for mine, theirs in zip(CASES, expected, strict=True):
        for key in ("arguments", "logits", "experts"):
            assert mine[key] == theirs[key], mine["rule"]
        np.testing.assert_allclose(mine["weights"], theirs["weights"], rtol=1e-8)


def routed(rule, x, given):
    """The same rule as arguments of moekit."""
    k = given.get("k", 1)
    v3 = {name: given[name] for name in ("groups", "top_groups", "scale") if name in given}
    bias = {"select_bias": np.float32(given["bias"])} if "bias" in given else {}
    match rule:
        case "switch" | "olmoe":
            return ops.route(x, k)
        case "mixtral":
            return ops.route(x, k, normalize=True)
        case "gpt_oss":
            return ops.route(x, k, score="softmax_topk")
        case "llama4":
            return ops.route(x, k, score="input_sigmoid")
        case "deepseek_v2":
            return ops.route(x, k, group_score="max", **v3)
        case "deepseek_v3":
            return ops.route(x, k, score="sigmoid", normalize=True, **bias, **v3)
        case "deepseek_v4":
            return ops.route(x, k, score="sqrtsoftplus", normalize=True, **bias, **v3)
        case "deepseek_v4_hash":
            rule = {"score": "sqrtsoftplus", "normalize": True, "scale": given["scale"]}
            return ops.route_hash(x, given["token_ids"], given["table"], **rule)
        case "ernie":
            return ops.route(x, k, normalize=True, **bias)
        case "longcat":
            return ops.route(x, k, **bias, **v3)
        case "mistral4":
            return ops.route(x, k, group_fill="0", normalize=True, **v3)
        case "noisy_top_k":
            return ops.route(x, k, score="softmax_topk", noise=np.float32(given["noise"]))
        case "sparse_mixer":
            return ops.route(x, k, score="sparsemixer", jitter_eps=given["jitter_eps"])
        case "capacity":
            a = ops.route(x, k, normalize=True)
            return ops.limit_capacity(a, x.shape[1], capacity=given["room"])
        case "expert_choice":
            return ops.route_expert_choice(x, given["room"])
        case "min_p":
            return ops.route_threshold(x, min_p=given["p"], k_max=k)
        case "top_p":
            return ops.route_threshold(x, top_p=given["p"], k_max=k)
        case "threshold":
            return ops.route_threshold(x, threshold=given["p"], k_max=k)
        case "shazeer":
            gate, spread = np.float32(given["gate"]).T, np.float32(given["spread"]).T
            return ops.route_noisy(x @ gate, x @ spread, k, normal=np.float32(given["normal"]))
        case "gshard":
            a = ops.route_gshard(x, uniform=np.float32(given["uniform"]))
            return ops.limit_capacity(a, x.shape[1], capacity=given["room"])
        case "next_best":
            a = ops.route(x, k, normalize=True)
            return ops.limit_capacity(a, x.shape[1], overflow="next_best", capacity=given["room"])
    raise AssertionError(f"no such rule here: {rule}")


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_moekit_routes_as_the_file_says(case):
    a = routed(case["rule"], np.float32(case["logits"]), case["arguments"])
    np.testing.assert_array_equal(a.experts, case["experts"])
    np.testing.assert_allclose(a.weights, case["weights"], rtol=2e-6)
