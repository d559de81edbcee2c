"""Trains the demo model for a given number of minutes on the CPU.

    python train.py WORKDIR --minutes 95 [--resume]
    python train.py WORKDIR --tokens 9.4e6 --dense 280 --processes 1 --name dense

The learning rate follows the clock and not a step count (warmup, stable, decay), so a run ends
annealed however fast the machine was. State is saved every few minutes to ``WORKDIR/state.pt``;
``--resume`` goes on from there with the minutes already used counted, and SIGTERM ends a run with
its state saved. Training time excludes nothing: evaluation and saving are inside it.

With ``--tokens`` the schedule follows the tokens instead, and with ``--dense`` all layers have one
feed-forward part of that inner size: 280 gives the mixture's active parameters, for a comparison.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing as mp
from model import Config, DeepseekV3, count_parameters, learning_rate_share
from optimiser import Optimiser
from sources import DOMAINS, MIXTURE
from torch import Tensor


class Stream:
    """Windows of ``length + 1`` tokens in the shares of ``MIXTURE``, no repeats in an epoch."""

    def __init__(self, work: Path, length: int, seed: int) -> None:
        self.length = length
        self.random = np.random.default_rng(seed)
        self.groups = list(MIXTURE)
        self.shares = np.array([MIXTURE[g] for g in self.groups])
        self.shares /= self.shares.sum()
        self.data = [
            np.fromfile(work / "tokens" / "train" / f"{g}.bin", dtype=np.uint16)
            for g in self.groups
        ]
        self.queue: list[list[int]] = [[] for _ in self.groups]

    def _window(self, group: int) -> np.ndarray:
        if not self.queue[group]:
            phase = int(self.random.integers(self.length))
            starts = np.arange(phase, len(self.data[group]) - self.length - 1, self.length)
            self.random.shuffle(starts)
            self.queue[group] = starts.tolist()
        start = self.queue[group].pop()
        return self.data[group][start : start + self.length + 1]

    def batch(self, size: int) -> Tensor:
        """[size, length + 1] int64. Shares are met in every batch up to one window."""
        exact = self.shares * size
        counts = exact.astype(int)
        rest = exact - counts
        left = size - int(counts.sum())
        if left:
            extra = self.random.choice(len(rest), left, p=rest / rest.sum(), replace=False)
            counts[extra] += 1
        rows = [self._window(g) for g, n in enumerate(counts) for _ in range(n)]
        return torch.from_numpy(np.stack(rows).astype(np.int64))


def held_batches(work: Path, length: int, windows: int) -> dict[str, Tensor]:
    """A fixed held-out sample per domain, every group in proportion to its size."""
    out = {}
    for domain in DOMAINS:
        ids = np.concatenate(
            [
                np.fromfile(work / "tokens" / "held" / f"{g}.bin", dtype=np.uint16)
                for g in MIXTURE
                if g.startswith(domain + "/")
            ]
        )
        starts = np.linspace(0, len(ids) - length - 1, windows).astype(int)
        rows = np.stack([ids[s : s + length + 1] for s in starts])
        out[domain] = torch.from_numpy(rows.astype(np.int64))
    return out


@torch.no_grad()
def held_loss(model: DeepseekV3, batches: dict[str, Tensor]) -> dict[str, float]:
    return {d: model.loss(ids, torch.bfloat16)[0].item() for d, ids in batches.items()}


def save(path: Path, content: dict[str, object]) -> None:
    part = path.with_suffix(".part")
    torch.save(content, part)
    os.replace(part, path)


class Team:
    """Processes of one thread each that share the weights and pool their gradients.

    Threads of one process would wait for each other inside every operation, which is ruinous when
    the machine is shared with other work. These processes never wait: a helper may read weights
    that the first process is just updating, so a gradient can be one step old.
    """

    def __init__(self, model: DeepseekV3, args: argparse.Namespace) -> None:
        self.model, self.args = model, args
        model.share_memory()
        size = sum(p.numel() for p in model.parameters())
        self.gradients = torch.zeros(size).share_memory_()
        shape = (len(model.moe_layers()), model.c.n_routed_experts)
        self.counts = torch.zeros(shape).share_memory_()
        self.loss = torch.zeros(()).share_memory_()
        context = mp.get_context("fork")
        self.pooled = context.Value("i", 0)  # micro-batches in the pool; its lock guards the pool
        self.pieces = context.Value("i", 1)  # parts that a window is cut into
        self.stopped = context.Event()
        self.others = [
            context.Process(target=self._serve, args=(rank,), daemon=True)
            for rank in range(1, args.processes)
        ]

    def _serve(self, rank: int) -> None:
        torch.set_num_threads(1)
        stream = Stream(self.args.work, self.args.length, self.args.seed + 1000 * rank)
        while not self.stopped.is_set():
            self._contribute(stream)

    def _contribute(self, stream: Stream) -> int:
        """One micro-batch into the pool; returns how many the pool holds now."""
        ids = stream.batch(self.args.micro_batch)
        part = self.args.length // self.pieces.value
        cuts = [ids[:, at : at + part + 1] for at in range(0, self.args.length, part)]
        loss, balance = self.model.loss(torch.cat(cuts), torch.bfloat16)
        (loss + self.args.balance * balance).backward()
        with self.pooled.get_lock():
            at = 0
            for p in self.model.parameters():
                if p.grad is not None:
                    self.gradients[at : at + p.numel()] += p.grad.view(-1)
                    p.grad = None
                at += p.numel()
            for i, moe in enumerate(self.model.moe_layers()):
                self.counts[i] += moe.counts
            self.loss += loss.detach()
            self.pooled.value += 1
            return int(self.pooled.value)

    def step(self, stream: Stream, micro_batches: int, pieces: int) -> tuple[float, int]:
        """Gathers at least ``micro_batches``; mean gradients in ``p.grad``, loads in ``counts``.

        Returns the mean loss and the number of micro-batches it was over.
        """
        self.pieces.value = pieces
        while self._contribute(stream) < micro_batches:
            pass
        with self.pooled.get_lock():
            count = int(self.pooled.value)
            mean = self.gradients / count
            loss = float(self.loss) / count
            for i, moe in enumerate(self.model.moe_layers()):
                moe.counts = self.counts[i].clone()
            for shared in (self.gradients, self.counts, self.loss):
                shared.zero_()
            self.pooled.value = 0
        at = 0
        for p in self.model.parameters():
            p.grad = mean[at : at + p.numel()].view_as(p)
            at += p.numel()
        return loss, count

    def __enter__(self) -> Team:
        for process in self.others:
            process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        for process in self.others:
            process.join(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--minutes", type=float)
    budget.add_argument("--tokens", type=float)
    parser.add_argument("--dense", type=int, metavar="INNER")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--name", default="state")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--micro-batch", type=int, default=4, help="sequences")
    parser.add_argument("--batch", type=int, default=8, help="sequences per step at first")
    parser.add_argument("--large-batch", type=int, default=8, help="from 35 %% of the time on")
    parser.add_argument("--short", type=float, default=0.5, help="share of the run in half windows")
    parser.add_argument("--muon-rate", type=float, default=0.008)
    parser.add_argument("--adam-rate", type=float, default=0.0015)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--gamma", type=float, default=1e-3, help="step of the selection bias")
    parser.add_argument("--balance", type=float, default=1e-4, help="sequence-wise balance loss")
    parser.add_argument("--decay", type=float, default=0.45, help="share of the run annealed")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    config = Config()
    if args.dense:
        config = replace(
            config,
            intermediate_size=args.dense,
            first_k_dense_replace=config.num_hidden_layers,
        )
    model = DeepseekV3(config)
    optimiser = Optimiser(model, args.muon_rate, args.adam_rate, args.weight_decay)
    state_path = args.work / f"{args.name}.pt"
    step, tokens, used = 0, 0, 0.0
    if args.resume:
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        step, tokens, used = state["step"], state["tokens"], state["minutes"]
        args.seed += step  # other windows than the ones already read
    print("parameters total, active:", count_parameters(config), flush=True)
    stream = Stream(args.work, args.length, args.seed)
    held = held_batches(args.work, args.length, 16)

    started = time.monotonic() - used * 60
    last_save = last_eval = last_print = time.monotonic()
    recent: list[float] = []
    recent_tokens = tokens

    def snapshot() -> dict[str, object]:
        return {
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "config": config.__dict__,
            "step": step,
            "tokens": tokens,
            "minutes": (time.monotonic() - started) / 60,
        }

    def report_held() -> None:
        values = {domain: round(value, 4) for domain, value in held_loss(model, held).items()}
        print("held", json.dumps(values), flush=True)

    def progress_now() -> float:
        if args.tokens:
            return tokens / float(args.tokens)
        return (time.monotonic() - started) / 60 / float(args.minutes)

    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    with Team(model, args) as team:
        signal.signal(signal.SIGTERM, stop)  # after the fork: ends this run with its state saved
        while not stopping and (progress := progress_now()) < 1:
            # The first 200 steps warm up by count: a schedule by the clock knows no step size.
            rate = min(1.0, (step + 1) / 200) * learning_rate_share(progress, args.decay)
            batch = args.batch if progress < 0.35 else args.large_batch
            # Short windows first: attention costs less while there is little of it to learn.
            pieces = 2 if progress < args.short else 1
            loss, count = team.step(stream, batch // args.micro_batch, pieces)
            if not math.isfinite(loss):
                raise FloatingPointError(f"loss {loss} at step {step}")
            optimiser.step(rate, momentum=0.85 + 0.10 * min(1.0, step / 300))
            # Quick at first: before the experts differ, a router left alone picks the same few.
            # Annealed at last, so that the final bias is not a random walk's last step.
            haste = 20.0 if step < 150 else 5.0 if step < 400 else max(rate, 0.05)
            model.update_bias(args.gamma * haste)
            step += 1
            tokens += count * args.micro_batch * args.length
            recent.append(loss)
            now = time.monotonic()
            if now - last_print > 20:
                layers = model.moe_layers()
                loads = [m.counts.float() / m.counts.float().mean() for m in layers]
                worst = max((float(load.max()) for load in loads), default=1.0)
                idle = min((int(m.counts.min()) for m in layers), default=0)
                speed = (tokens - recent_tokens) / (now - last_print)
                print(
                    f"{(now - started) / 60:6.1f} min {progress:6.1%} step {step:5d} "
                    f"{tokens / 1e6:7.2f} M tokens loss {np.mean(recent):.4f} "
                    f"rate {rate:.3f} {speed:6.0f} tok/s load max/mean {worst:.2f} min {idle}",
                    flush=True,
                )
                recent, recent_tokens, last_print = [], tokens, now
            if now - last_eval > 300:
                report_held()
                last_eval = time.monotonic()
            if now - last_save > 180:
                save(state_path, snapshot())
                last_save = time.monotonic()
    report_held()
    save(state_path, snapshot())
    print(f"done: {step} steps, {tokens} tokens, {(time.monotonic() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
