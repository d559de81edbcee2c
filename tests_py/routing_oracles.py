"""One oracle for each routing rule, in plain Python and double precision: what the conformity file
expects. Run this file to write `data/routing_conformity.json` anew.

Every oracle takes the logits of all tokens and returns (ids, weights), a list for each token, -1
and 0.0 in empty slots. Equal scores go to the lower id.
"""

import json
import math
import random
import re
from pathlib import Path

FILE = Path(__file__).parent / "data" / "routing_conformity.json"


def best(scores, k):
    """Ids of the k largest."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]


def softmax(x):
    top = max(x)
    e = [math.exp(v - top) for v in x]
    return [v / sum(e) for v in e]


def sigmoid(v):
    return 1 / (1 + math.exp(-v))


def by_row(rule):
    """An oracle for one token becomes one for all."""

    def oracle(logits, **given):
        rows = [rule(x, **given) for x in logits]
        return [list(r[0]) for r in rows], [list(r[1]) for r in rows]

    oracle.__doc__ = rule.__doc__
    return oracle


@by_row
def switch(x):
    """Switch (Fedus et al. 2021): the most probable expert, weighed by its probability."""
    p = softmax(x)
    return best(p, 1), [max(p)]


@by_row
def olmoe(x, k):
    """OLMoE, Qwen1.5-MoE, Jamba: softmax over all, top-k, weights as they are."""
    p = softmax(x)
    ids = best(p, k)
    return ids, [p[i] for i in ids]


@by_row
def mixtral(x, k):
    """Mixtral, Qwen3-MoE: softmax over all, top-k, weights divided by their sum."""
    p = softmax(x)
    ids = best(p, k)
    return ids, [p[i] / sum(p[j] for j in ids) for i in ids]


@by_row
def gpt_oss(x, k):
    """gpt-oss, Granite: top-k of the logits, softmax over the chosen."""
    ids = best(x, k)
    return ids, softmax([x[i] for i in ids])


@by_row
def llama4(x, k):
    """Llama 4: top-k of the logits; their sigmoid scales the expert's input."""
    ids = best(x, k)
    return ids, [sigmoid(x[i]) for i in ids]


@by_row
def deepseek_v2(x, k, groups, top_groups, scale):
    """DeepSeek-V2: softmax; a group is worth its best expert; no normalising."""
    p, size = softmax(x), len(x) // groups
    kept = best([max(p[g * size : (g + 1) * size]) for g in range(groups)], top_groups)
    ids = best([p[i] if i // size in kept else -math.inf for i in range(len(x))], k)
    return ids, [p[i] * scale for i in ids]


@by_row
def deepseek_v3(x, k, bias, groups, top_groups, scale):
    """DeepSeek-V3: sigmoid + bias chooses; a group is worth its two best; the bias never weighs."""
    s, size = [sigmoid(v) for v in x], len(x) // groups
    c = [v + b for v, b in zip(s, bias, strict=True)]
    worth = [sum(sorted(c[g * size : (g + 1) * size])[-2:]) for g in range(groups)]
    kept = best(worth, top_groups)
    ids = best([c[i] if i // size in kept else -math.inf for i in range(len(x))], k)
    return ids, [s[i] / (sum(s[j] for j in ids) + 1e-20) * scale for i in ids]


@by_row
def deepseek_v4(x, k, bias, scale):
    """DeepSeek-V4: sqrt(softplus) + bias chooses, the unbiased scores weigh."""
    s = [math.sqrt(math.log1p(math.exp(v))) for v in x]
    ids = best([v + b for v, b in zip(s, bias, strict=True)], k)
    return ids, [s[i] / sum(s[j] for j in ids) * scale for i in ids]


def deepseek_v4_hash(logits, table, token_ids, scale):
    """DeepSeek-V4's first layers: ids from a table by token id, weights from the gate."""
    chosen = [list(table[t]) for t in token_ids]
    s = [[math.sqrt(math.log1p(math.exp(v))) for v in x] for x in logits]
    rows = [[row[i] for i in ids] for row, ids in zip(s, chosen, strict=True)]
    return chosen, [[v / sum(row) * scale for v in row] for row in rows]


@by_row
def ernie(x, k, bias):
    """ERNIE 4.5: softmax + bias chooses, the probabilities weigh, divided by their sum."""
    p = softmax(x)
    ids = best([v + b for v, b in zip(p, bias, strict=True)], k)
    return ids, [p[i] / max(sum(p[j] for j in ids), 1e-12) for i in ids]


@by_row
def longcat(x, k, bias, scale):
    """LongCat-Flash: softmax + bias over real and zero-computation experts, no normalising."""
    p = softmax(x)
    ids = best([v + b for v, b in zip(p, bias, strict=True)], k)
    return ids, [p[i] * scale for i in ids]


@by_row
def mistral4(x, k, groups, top_groups, scale):
    """Mistral Small 4: softmax, V3's groups, experts of other groups compete with 0."""
    p, size = softmax(x), len(x) // groups
    worth = [sum(sorted(p[g * size : (g + 1) * size])[-2:]) for g in range(groups)]
    kept = best(worth, top_groups)
    ids = best([p[i] if i // size in kept else 0.0 for i in range(len(x))], k)
    return ids, [p[i] / (sum(p[j] for j in ids) + 1e-20) * scale for i in ids]


def noisy_top_k(logits, noise, k):
    """Shazeer et al. 2017: H = x·Wg + noise; softmax over the k largest of H."""
    noisy = [[a + b for a, b in zip(x, n, strict=True)] for x, n in zip(logits, noise, strict=True)]
    return gpt_oss(noisy, k=k)


@by_row
def sparse_mixer(x, k, jitter_eps):
    """SparseMixer (Phi-3.5-MoE, inference): a softmax per slot over what is near the best left."""
    left, ids, weights = list(x), [], []
    for _ in range(k):
        top = max(left)
        near = [
            (top - v) / max(abs(a), top) <= 2 * jitter_eps for v, a in zip(left, x, strict=True)
        ]
        p = softmax([v if n else -math.inf for v, n in zip(left, near, strict=True)])
        ids.append(best(left, 1)[0])
        weights.append(p[ids[-1]])
        left[ids[-1]] = -math.inf
    return ids, weights


def capacity(logits, k, room):
    """GShard, Switch: first choices before second ones, in token order; the rest is dropped."""
    ids, weights = mixtral(logits, k=k)
    return place(ids, weights, room, len(logits[0]))


def place(ids, weights, room, experts):
    """Slot by slot, token by token; an expert takes `room`, the rest is dropped."""
    placed = [0] * experts
    for slot in range(len(ids[0])):
        for token, row in enumerate(ids):
            if row[slot] >= 0 and placed[row[slot]] < room:
                placed[row[slot]] += 1
            else:
                row[slot], weights[token][slot] = -1, 0.0
    return ids, weights


def expert_choice(logits, room):
    """Expert choice (Zhou et al. 2022): every expert takes its best tokens. Not causal."""
    p = [softmax(x) for x in logits]
    tokens, experts = range(len(p)), range(len(p[0]))
    takes = [best([p[t][e] for t in tokens], room) for e in experts]
    mine = [best(p[t], len(p[t])) for t in tokens]
    ids = [[e for e in mine[t] if t in takes[e]] for t in tokens]
    width = max(1, max(map(len, ids)))
    weights = [[p[t][e] for e in ids[t]] + [0.0] * (width - len(ids[t])) for t in tokens]
    return [row + [-1] * (width - len(row)) for row in ids], weights


@by_row
def min_p(x, p, k):
    """At least p times the largest probability, at most k experts."""
    prob = softmax(x)
    ids = [i for i in best(prob, k) if prob[i] >= p * max(prob)]
    empty = k - len(ids)
    return ids + [-1] * empty, [prob[i] for i in ids] + [0.0] * empty


@by_row
def top_p(x, p, k):
    """The most probable experts until their probabilities reach p (Huang et al. 2024)."""
    prob = softmax(x)
    order = best(prob, k)
    ids = [i for n, i in enumerate(order) if sum(prob[j] for j in order[:n]) < p]
    empty = k - len(ids)
    return ids + [-1] * empty, [prob[i] for i in ids] + [0.0] * empty


@by_row
def threshold(x, p, k):
    """At least the probability p, at most k experts, perhaps none: the token passes them by."""
    prob = softmax(x)
    ids = [i for i in best(prob, k) if prob[i] >= p]
    empty = k - len(ids)
    return ids + [-1] * empty, [prob[i] for i in ids] + [0.0] * empty


def shazeer(x, gate, spread, normal, k):
    """Shazeer et al. 2017, whole: x·Wg + normal·softplus(x·Wnoise), softmax over the k largest."""

    def product(row, w):
        return [sum(a * b for a, b in zip(row, column, strict=True)) for column in w]

    noise = [
        [n * math.log1p(math.exp(v)) for n, v in zip(draws, product(row, spread), strict=True)]
        for row, draws in zip(x, normal, strict=True)
    ]
    return noisy_top_k([product(row, gate) for row in x], noise=noise, k=k)


def gshard(logits, uniform, room):
    """GShard (2020): top 2, the second where 2·g2 > a draw; all first choices before second."""
    ids, weights = mixtral(logits, k=2)
    for row, w, draw in zip(ids, weights, uniform, strict=True):
        if 2 * w[1] <= draw:
            row[1], w[1] = -1, 0.0
    return place(ids, weights, room, len(logits[0]))


def next_best(logits, k, room):
    """Where an expert is full, the token's best other one with room; the token is weighed anew."""
    ids, _ = mixtral(logits, k=k)
    placed = [0] * len(logits[0])
    for slot in range(k):
        for x, row in zip(logits, ids, strict=True):
            free = [i for i in best(x, len(x)) if placed[i] < room and i not in row]
            if placed[row[slot]] >= room:
                row[slot] = free[0] if free else -1
            placed[row[slot]] += row[slot] >= 0
    weights = []
    for x, row in zip(logits, ids, strict=True):
        left = iter(softmax([x[i] for i in row if i >= 0]))
        weights.append([next(left) if i >= 0 else 0.0 for i in row])
    return ids, weights


def inputs(tokens, experts, seed):
    """Logits that float16 holds exactly; the last two rows have ties."""
    rng = random.Random(seed)
    rows = [[rng.randint(-64, 64) / 16 for _ in range(experts)] for _ in range(tokens - 2)]
    return [*rows, [rng.choice([-1.0, 0.5]) for _ in range(experts)], [0.25] * experts]


def cases():
    """(oracle, its arguments, tokens, experts)."""
    rng = random.Random(1)
    bias16 = [rng.randint(-32, 32) / 128 for _ in range(16)]
    low = [b - 2 for b in bias16]  # every biased score is below zero
    noise = [[rng.randint(-32, 32) / 16 for _ in range(8)] for _ in range(6)]
    table = [rng.sample(range(16), 4) for _ in range(10)]
    groups = {"groups": 4, "top_groups": 2}

    def grid(rows, columns):
        return [[rng.randint(-16, 16) / 16 for _ in range(columns)] for _ in range(rows)]

    return [
        (switch, {}, 6, 8),
        (olmoe, {"k": 3}, 6, 12),
        (mixtral, {"k": 2}, 6, 8),
        (mixtral, {"k": 8}, 6, 8),
        (gpt_oss, {"k": 4}, 6, 32),
        (llama4, {"k": 1}, 6, 16),
        (deepseek_v2, {"k": 3, **groups, "scale": 16.0}, 6, 16),
        (deepseek_v3, {"k": 4, "bias": bias16, **groups, "scale": 2.5}, 6, 16),
        (deepseek_v3, {"k": 4, "bias": low, **groups, "scale": 2.5}, 6, 16),
        (deepseek_v4, {"k": 4, "bias": bias16, "scale": 1.5}, 6, 16),
        (deepseek_v4_hash, {"table": table, "token_ids": [3, 0, 9, 3, 7, 1], "scale": 1.5}, 6, 16),
        (ernie, {"k": 3, "bias": bias16}, 6, 16),
        (longcat, {"k": 4, "bias": bias16, "scale": 6.0}, 6, 16),
        (mistral4, {"k": 4, **groups, "scale": 1.0}, 6, 16),
        (noisy_top_k, {"noise": noise, "k": 2}, 6, 8),
        (sparse_mixer, {"k": 2, "jitter_eps": 0.25}, 6, 16),
        (capacity, {"k": 2, "room": 3}, 8, 8),
        (expert_choice, {"room": 2}, 8, 5),
        (min_p, {"p": 0.25, "k": 6}, 6, 8),
        (top_p, {"p": 0.75, "k": 6}, 6, 8),
        (threshold, {"p": 0.2, "k": 5}, 7, 7),
        (shazeer, {"gate": grid(7, 5), "spread": grid(7, 5), "normal": grid(6, 7), "k": 3}, 6, 5),
        (gshard, {"uniform": [0.9375, 0.5, 0.25, 0.75, 0.0, 0.9375, 0.5], "room": 2}, 7, 5),
        (next_best, {"k": 2, "room": 3}, 7, 5),
    ]


def conformity():
    """The content of the file."""
    entries = []
    for seed, (oracle, arguments, tokens, experts) in enumerate(cases()):
        logits = inputs(tokens, experts, seed)
        ids, weights = oracle(logits, **arguments)
        name = next(n for n, value in globals().items() if value is oracle)
        entries.append(
            {
                "rule": name,
                "description": oracle.__doc__,
                "arguments": arguments,
                "logits": logits,
                "experts": ids,
                "weights": [[float(f"{w:.9g}") for w in row] for row in weights],
            }
        )
    return {
        "format": "routing conformity 1",
        "notes": "experts [tokens, K]: best first, ties to the lower id, -1 is an empty slot with "
        "weight 0. For shazeer, logits are the inputs x [tokens, H] of gate and spread [E, H]. "
        "weights are from double precision: compare with a relative tolerance of 1e-5.",
        "cases": entries,
    }


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    text = json.dumps(conformity(), indent=1)
    # A row of numbers to a line.
    text = re.sub(r"\[\s+([-\d][^\[\]]*?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    FILE.write_text(text + "\n")
