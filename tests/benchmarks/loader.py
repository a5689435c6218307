"""Tokens a second of our loader against a plain memory-mapped loop as nanoGPT has it.

Ours delivers all a step needs: three sources mixed, windows shuffled, documents packed with
segments and restarting positions, targets and weights, int32 and float32, contiguous.  The plain
loop takes random offsets in one file and stacks slices as int64, inputs and targets, nothing
else.  Both sides run in turn within one process, page cache warm.

    python tests/benchmarks/loader.py [--json FILE]
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

from lm.batch import Example
from lm.data.loader import Loader
from lm.data.mixture import Mixture, Weighted
from lm.data.shards import Shards
from lm.shards import Manifest, ShardFile, Split, TokenizerFacts, sha256, write_manifest


class NextToken:
    """What ``CausalLm`` does on the host."""

    def prepare(self, ids: np.ndarray, segments: np.ndarray, rng: np.random.Generator) -> Example:
        del rng
        return self.prepare_rows(ids, segments)

    def prepare_rows(self, ids: np.ndarray, segments: np.ndarray) -> Example:
        same = (segments[..., 1:] == segments[..., :-1]) & (segments[..., 1:] != 0)
        return Example(ids[..., :-1], segments[..., :-1], ids[..., 1:], same.astype(np.float32))


def write_shards(folder: Path, seed: int, tokens: int, mean_document: int) -> None:
    """One shard of random ids; document lengths are geometric, as much text's nearly are."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    rng.integers(3, 50_000, tokens, dtype=np.uint16).tofile(folder / "train-00000.tokens")
    sizes = 2 + rng.geometric(1 / mean_document, 2 * tokens // mean_document)
    starts = np.cumsum(sizes) - sizes
    starts = np.append(starts[starts < tokens - 1], tokens).astype("<u8")
    starts.tofile(folder / "train-00000.documents")
    (folder / "train-00000.ids").write_text("")
    file = ShardFile(
        stem="train-00000",
        tokens=tokens,
        documents=starts.size - 1,
        text_bytes=0,
        sha256={e: sha256(folder / f"train-00000.{e}") for e in ("tokens", "documents", "ids")},
    )
    write_manifest(
        folder,
        Manifest(
            format=1,
            dtype="uint16",
            tokenizer=TokenizerFacts(digest="none", vocab_size=50_000, bos=1, eos=2),
            splits={"train": Split(files=(file,))},
        ),
    )


def plain_loop(path: Path, rows: int, length: int) -> Callable[[], object]:
    """nanoGPT's get_batch, without torch: the memory map is opened anew for each batch."""
    rng = np.random.default_rng(0)

    def batch() -> object:
        data = np.memmap(path, dtype=np.uint16, mode="r")
        offsets = rng.integers(0, len(data) - length, rows)
        x = np.stack([data[i : i + length].astype(np.int64) for i in offsets])
        y = np.stack([data[i + 1 : i + 1 + length].astype(np.int64) for i in offsets])
        return x, y

    return batch


def seconds(batch: Callable[[], object], batches: int) -> float:
    """Seconds of so many batches."""
    begin = time.perf_counter()
    for _ in range(batches):
        batch()
    return time.perf_counter() - begin


def measure(sides: dict[str, Callable[[], object]], rounds: int, tokens: int, batches: int) -> dict:
    """Million tokens a second of each side, all in turn in each round."""
    for batch in sides.values():
        seconds(batch, batches)  # warm page cache, allocator and threads
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, batch in sides.items():
            rates[name].append(tokens * batches / seconds(batch, batches) / 1e6)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=64, help="rows of a batch")
    parser.add_argument("--batches", type=int, default=64, help="batches of a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=60_000_000, help="tokens of all sources")
    parser.add_argument("--document", type=int, default=700, help="mean tokens of a document")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        parts = []
        for seed, share in enumerate((0.6, 0.3, 0.1)):
            folder = Path(name) / f"part{seed}"
            write_shards(folder, seed, int(options.tokens * share), options.document)
            parts.append(Weighted(source=Shards(path=str(folder)), weight=share))
        loader = Loader(
            blend=Mixture(sources=tuple(parts)).build(options.length),
            objective=NextToken(),
            sequences=options.rows,
            seed=0,
        )
        plain = plain_loop(
            Path(name) / "part0" / "train-00000.tokens", options.rows, options.length
        )
        with loader.stream(threads=0) as one, loader.stream(threads=2) as two:
            sides: dict[str, Callable[[], object]] = {
                "plain memory-mapped loop": plain,
                "ours, in the caller's thread": lambda: next(one),
                "ours, 2 threads ahead": lambda: next(two),
            }
            rates = measure(sides, options.rounds, options.rows * options.length, options.batches)

    report = {
        "settings": {k: v for k, v in vars(options).items() if k != "json"},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {p: version(p) for p in ("numpy", "grain")}
        | {"python": platform.python_version()},
        "million_tokens_per_second": {},
    }
    base = rates["plain memory-mapped loop"]
    print(f"length {options.length}, {options.rows} rows, {options.rounds} rounds in turn")
    print(f"{'':32}{'M tokens/s':>12}{'lowest':>9}{'highest':>9}{'ratio':>8}{'its range':>15}")
    for name, found in rates.items():
        ratios = [a / b for a, b in zip(found, base, strict=True)]
        row = {
            "median": statistics.median(found),
            "lowest": min(found),
            "highest": max(found),
            "ratio": statistics.median(ratios),
            "ratio_lowest": min(ratios),
            "ratio_highest": max(ratios),
        }
        report["million_tokens_per_second"][name] = row
        spread = f"{row['ratio_lowest']:.2f} to {row['ratio_highest']:.2f}"
        print(
            f"{name:32}{row['median']:12.1f}{row['lowest']:9.1f}{row['highest']:9.1f}"
            f"{row['ratio']:8.2f}{spread:>15}"
        )
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
