"""Our training step against transformers' GPT-2 in PyTorch, eager and compiled.

The same sizes, batch, optimizer (AdamW, gradient clipped to 1) and precision (float32).  Each side
is a process of its own that waits while another works; they take turns, a few steps at a time, and
the table gives medians over the turns and ratios to ours within the same turn.

    python tests/benchmarks/step.py [--vocab 8192 50304] [--turns 8] [--steps 3] [--json FILE]

Needs the extra ``parity`` (torch, transformers); without it only our own step is timed.
"""

import argparse
import importlib.util
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

BLOCKS, WIDTH, HEADS, LENGTH, BATCH = 6, 384, 6, 256, 8


def ours(vocab: int) -> Callable[[], None]:
    """A closure that makes one step with lm."""
    import jax
    import numpy as np

    from lm.batch import Batch, Tokens
    from lm.layers.execution import Execution
    from lm.models.gpt2 import gpt2
    from lm.objectives.causal import CausalLm
    from lm.optim.adamw import AdamW
    from lm.optim.schedule import Constant
    from lm.parallel.mesh import Mesh, Parallel
    from lm.train.placed import place_model
    from lm.train.program import build_program
    from lm.train.step import Training

    model = gpt2(vocab, width=WIDTH, blocks=BLOCKS, num_heads=HEADS, length=LENGTH)
    training = Training(steps=1000, sequences=BATCH, length=LENGTH)
    optimizer = AdamW(schedule=Constant(peak=1e-4, warmup=1), clip=1.0)
    parallel = Parallel(mesh=Mesh(fsdp=1))
    placed = place_model(model, Execution(), parallel, jax.devices()[:1])
    program = build_program(placed, CausalLm(), optimizer, training)
    state = program.init(jax.random.key(0))
    ids = np.random.default_rng(0).integers(0, vocab, (BATCH, LENGTH + 1)).astype(np.int32)
    places = np.tile(np.arange(LENGTH, dtype=np.int32), (BATCH, 1))
    ones = np.ones((BATCH, LENGTH), np.int32)
    tokens = Tokens(ids[:, :-1], ones, places)
    rows = np.arange(BATCH, dtype=np.int32)
    batch = jax.device_put(Batch(tokens, ids[:, 1:], ones.astype(np.float32), rows))
    compiled = program.step.lower(program.state, program.batch).compile()
    holder = [state]

    def step() -> None:
        holder[0], metrics = compiled(holder[0], batch)
        float(metrics["loss"])

    return step


def theirs(vocab: int, *, compiled: bool) -> Callable[[], None]:
    """A closure that makes one step with transformers' GPT-2."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocab,
        n_positions=LENGTH,
        n_embd=WIDTH,
        n_layer=BLOCKS,
        n_head=HEADS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
    )
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1)
    ids = torch.randint(0, vocab, (BATCH, LENGTH + 1))
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def loss_of() -> torch.Tensor:
        logits = model(inputs).logits
        return torch.nn.functional.cross_entropy(logits.view(-1, vocab), targets.view(-1))

    forward = torch.compile(loss_of) if compiled else loss_of

    def step() -> None:
        loss = forward()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return step


SIDES: dict[str, Callable[[int], Callable[[], None]]] = {
    "lm": ours,
    "torch eager": lambda vocab: theirs(vocab, compiled=False),
    "torch.compile": lambda vocab: theirs(vocab, compiled=True),
}


def work(side: str, vocab: int) -> None:
    """The worker's life: warm up, then run as many steps as each line of stdin says."""
    step = SIDES[side](vocab)
    for _ in range(3):
        step()
    print("ready", flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            step()
        print((time.perf_counter() - began) / int(line), flush=True)


def race(sides: list[str], vocab: int, turns: int, steps: int) -> dict[str, list[float]]:
    """Seconds a step of each side, turn by turn."""
    workers: dict[str, subprocess.Popen[str]] = {}
    for side in sides:  # one after another, so that none warms up beside another
        command = [sys.executable, __file__, "--worker", side, "--vocab", str(vocab)]
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ready = worker.stdout.readline().strip() if worker.stdout else ""
        if ready != "ready":
            raise SystemExit(f"{side}: did not start")
        workers[side] = worker
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(turns):
        for side, worker in workers.items():
            if worker.stdin is None or worker.stdout is None:
                raise SystemExit(f"{side}: no pipe")
            worker.stdin.write(f"{steps}\n")
            worker.stdin.flush()
            times[side].append(float(worker.stdout.readline()))
    for worker in workers.values():
        worker.communicate()
    return times


def versions() -> dict[str, str]:
    """What is measured."""
    found = {"python": platform.python_version()}
    for package in ("jax", "torch", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocab", type=int, nargs="+", default=[8192, 50304])
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--json")
    parser.add_argument("--worker")
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.vocab[0])
        return
    sides = list(SIDES) if importlib.util.find_spec("torch") else ["lm"]
    figures = []
    for vocab in arguments.vocab:
        times = race(sides, vocab, arguments.turns, arguments.steps)
        print(f"vocabulary {vocab:,}; {BLOCKS} blocks x {WIDTH}, batch {BATCH} x {LENGTH}, float32")
        for side, seconds in times.items():
            ratios = [s / o for s, o in zip(seconds, times["lm"], strict=True)]
            print(
                f"  {side:<14} {1e3 * statistics.median(seconds):7.0f} ms "
                f"({1e3 * min(seconds):.0f} to {1e3 * max(seconds):.0f})   "
                f"{statistics.median(ratios):.2f} x ours ({min(ratios):.2f} to {max(ratios):.2f})",
                flush=True,
            )
            figures.append({"vocab": vocab, "side": side, "seconds": seconds, "ratio": ratios})
    told = {"versions": versions(), "machine": platform.processor(), "figures": figures}
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(told, file, indent=1)


if __name__ == "__main__":
    main()
