"""Bits per byte, expert load and samples of the demo model; exports it as a checkpoint.

python evaluate.py export WORKDIR OUTDIR [--name state]   # state.pt -> model.safetensors, ...
python evaluate.py report WORKDIR OUTDIR                  # JSON: bpb, xz, expert load, samples
python evaluate.py texts WORKDIR OUTDIR                   # held-out extracts for texts/
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
from pathlib import Path

import torch
from model import Config, DeepseekV3, count_parameters
from safetensors.torch import load_file, save_file
from sources import DOMAINS, MIXTURE
from tokenizers import Tokenizer
from torch import Tensor

CONTEXT = 512
PROMPTS = {
    "english": "She had been at home only a week when",
    "german": "Um ein neues Dokument zu öffnen,",
    "python": "class Tree:\n    def __init__(self",
    "c": "static int __init",
}

# The held-out documents that texts/ quotes, by words in them; their licences are in SOURCES.md.
EXTRACTS = {
    "english": ("english/novel", "One day only had passed since Anne's conversation"),
    "german": ("german/manual", "Die Falcot Corp. Administratoren benötigen"),
    "python": ("python/code", "Counts Paice's performance statistics"),
    "c": ("c/code", "static __always_inline u64 u64_eq_mask"),
}


def export(work: Path, out: Path, name: str) -> None:
    state = torch.load(work / f"{name}.pt", weights_only=True)
    config = Config(**state["config"])
    model = DeepseekV3(config)
    model.load_state_dict(state["model"])
    save_file(model.export(), out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config.to_hugging_face(), indent=2) + "\n")
    generation = {"eos_token_id": 0, "pad_token_id": 1, "do_sample": False}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    print(
        f"exported step {state['step']}, {state['tokens']} tokens, {state['minutes']:.1f} minutes"
    )


def load(out: Path) -> DeepseekV3:
    """The exported checkpoint, bfloat16 values in float32, in the training model."""
    written = json.loads((out / "config.json").read_text())
    model = DeepseekV3(Config(**{k: written[k] for k in Config.__dataclass_fields__}))
    tensors = load_file(out / "model.safetensors")
    state = {}
    for name, value in model.state_dict().items():
        prefix, _, leaf = name.rpartition(".")
        if name == "embed_tokens":
            state[name] = tensors["model.embed_tokens.weight"]
        elif leaf in ("gate_proj", "up_proj", "down_proj") and value.dim() == 3:
            state[name] = torch.stack(
                [tensors[f"model.{prefix}.experts.{e}.{leaf}.weight"] for e in range(len(value))]
            )
        elif leaf == "gate":
            state[name] = tensors[f"model.{prefix}.gate.weight"]
        elif leaf == "bias":
            state[name] = tensors[f"model.{prefix}.gate.e_score_correction_bias"]
        else:
            state[name] = tensors[f"model.{name}"]
    model.load_state_dict({k: v.float() for k, v in state.items()})
    return model.eval()


@torch.no_grad()
def bits(model: DeepseekV3, tokenizer: Tokenizer, text: str, loads: Tensor | None) -> float:
    """Bits for a text from its first byte on: ``<|end|>`` in front, windows with half overlap.

    Every token but those of the first window is predicted from at least CONTEXT / 2 others.
    """
    end = tokenizer.token_to_id("<|end|>")
    ids = torch.tensor([end, *tokenizer.encode(text, add_special_tokens=False).ids])
    total, done = 0.0, 1
    while done < len(ids):
        start = max(0, min(done - CONTEXT // 2, len(ids) - CONTEXT)) if done > 1 else 0
        window = ids[start : start + CONTEXT]
        log_p = torch.log_softmax(model.logits(window[None]), -1)[0]
        goal = window[done - start :]
        total -= log_p[done - start - 1 : len(window) - 1].gather(1, goal[:, None]).sum().item()
        done = start + len(window)
        if loads is not None:
            for i, moe in enumerate(model.moe_layers()):
                loads[i] += moe.counts
    return total / math.log(2)


@torch.no_grad()
def extract_figures(model: DeepseekV3, tokenizer: Tokenizer, out: Path) -> dict[str, float]:
    """Bits per byte of texts/ over separate windows of 512 tokens, as the tests measure them."""
    figures = {}
    for domain in DOMAINS:
        text = (out / "texts" / f"{domain}.txt").read_text("utf-8")
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        nats = 0.0
        for at in range(0, len(ids), CONTEXT - 1):
            window = torch.tensor([tokenizer.token_to_id("<|end|>"), *ids[at : at + CONTEXT - 1]])
            log_p = torch.log_softmax(model.logits(window[None])[0, :-1], -1)
            nats -= log_p.gather(1, window[1:, None]).sum().item()
        figures[domain] = round(nats / math.log(2) / len(text.encode()), 3)
    return figures


def held_text(work: Path, group: str, limit: int) -> list[str]:
    """Whole held-out documents up to ``limit`` bytes, evenly spread over the group."""
    documents = (work / "text" / "held" / f"{group}.txt").read_text("utf-8").split("\0")
    chosen, size = [], 0
    for document in documents:
        chosen.append(document[:20_000])
        size += len(chosen[-1].encode())
        if size > limit:
            break
    return chosen


@torch.no_grad()
def continued(
    model: DeepseekV3, tokenizer: Tokenizer, prompt: str, count: int, temperature: float
) -> str:
    """Up to ``count`` more tokens: greedy at temperature 0, else sampled from the top 95 %."""
    end = tokenizer.token_to_id("<|end|>")
    random = torch.Generator().manual_seed(1)
    ids = [end, *tokenizer.encode(prompt).ids]
    start = len(ids)
    for _ in range(count):
        logits = model.logits(torch.tensor(ids)[None])[0, -1]
        following = int(logits.argmax())
        if temperature > 0:
            p, order = torch.softmax(logits / temperature, -1).sort(descending=True)
            p = p * (p.cumsum(0) - p < 0.95)
            following = int(order[torch.multinomial(p, 1, generator=random)])
        if following == end:
            break
        ids.append(following)
    return str(tokenizer.decode(ids[start:]))


def report(work: Path, out: Path, limit: int) -> dict[str, object]:
    model, tokenizer = load(out), Tokenizer.from_file(str(out / "tokenizer.json"))
    layers = len(model.moe_layers())
    result: dict[str, object] = {"parameters": count_parameters(model.c)}
    rows: dict[str, dict[str, float]] = {}
    loads: dict[str, Tensor] = {}
    for domain in DOMAINS:
        loads[domain] = torch.zeros(layers, model.c.n_routed_experts)
        domain_bits, domain_text, tokens = 0.0, "", 0
        groups = [g for g in MIXTURE if g.startswith(domain + "/")]
        for group in groups:
            documents = held_text(work, group, limit // len(groups))
            spent = sum(bits(model, tokenizer, d, loads[domain]) for d in documents)
            text = "".join(documents)
            rows[group] = _row(spent, text)
            domain_bits += spent
            domain_text += text
            tokens += len(tokenizer.encode(text, add_special_tokens=False).ids)
        rows[domain] = _row(domain_bits, domain_text)
        rows[domain]["bytes_per_token"] = round(len(domain_text.encode()) / tokens, 3)
        print(domain, rows[domain], flush=True)
    result["bits_per_byte"] = rows
    everything = sum(loads.values())
    assert isinstance(everything, Tensor)
    share = everything / everything.sum(1, keepdim=True) * model.c.n_routed_experts
    result["load"] = {
        "max_over_mean": [round(v, 2) for v in share.max(1).values.tolist()],
        "min_over_mean": [round(v, 2) for v in share.min(1).values.tolist()],
        "dead": int((everything == 0).sum()),
        "max_over_mean_by_domain": {
            d: [round(v, 2) for v in (x / x.mean(1, keepdim=True)).max(1).values.tolist()]
            for d, x in loads.items()
        },
    }
    result["texts"] = extract_figures(model, tokenizer, out)
    for kind, temperature, count in (("greedy", 0.0, 24), ("sampled", 0.8, 80)):
        result[kind] = {
            domain: continued(model, tokenizer, prompt, count, temperature)
            for domain, prompt in PROMPTS.items()
        }
    return result


def _row(spent: float, text: str) -> dict[str, float]:
    raw = text.encode()
    packed = lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)
    return {
        "model": round(spent / len(raw), 3),
        "xz": round(8 * len(packed) / len(raw), 3),
        "bytes": len(raw),
    }


def texts(work: Path, out: Path) -> None:
    """The beginning of one held-out document per domain, whole paragraphs, up to 7.5 KB."""
    (out / "texts").mkdir(exist_ok=True)
    for domain, (group, words) in EXTRACTS.items():
        documents = (work / "text" / "held" / f"{group}.txt").read_text("utf-8").split("\0")
        text = next(d for d in documents if words in d)
        while len(text.encode()) > 7_500:
            text = text[: text.rstrip().rfind("\n\n")]
        (out / "texts" / f"{domain}.txt").write_text(text.rstrip() + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("action", choices=("export", "report", "texts"))
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--name", default="state")
    parser.add_argument("--limit", type=int, default=150_000, help="held-out bytes per domain")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.action == "export":
        export(args.work, args.out, args.name)
    elif args.action == "texts":
        texts(args.work, args.out)
    else:
        result = report(args.work, args.out, args.limit)
        (args.work / "report.json").write_text(json.dumps(result, indent=1, ensure_ascii=False))
        print(json.dumps(result, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
