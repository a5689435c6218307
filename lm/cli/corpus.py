"""``lm corpus tokenize``: text -> shards."""

import argparse
import sys
import time
from pathlib import Path

from lm.cli.output import people, write_json
from lm.corpus.tokenise import tokenise
from lm.tokenizers.load import load_tokenizer
from lm.track.format import duration


def run(arguments: argparse.Namespace) -> int:
    """Tokenise; returns the exit code."""
    out, began = Path(arguments.out), time.perf_counter()
    with people(arguments.json):
        tokenizer = load_tokenizer(Path(arguments.tokenizer))
        progress = _Progress()
        manifest = tokenise(
            arguments.input,
            tokenizer,
            out,
            held_out=arguments.held_out,
            field=arguments.field,
            progress=progress.show,
        )
        progress.clear()
        seconds = time.perf_counter() - began
        for name, split in manifest.splits.items():
            each = split.text_bytes / max(1, split.tokens)
            print(
                f"{name:<10} {split.documents:,} documents, {split.text_bytes / 1e6:.2f} MB, "
                f"{split.tokens:,} tokens ({each:.2f} bytes each)"
            )
        print(f"written    {out} in {duration(seconds)} ({manifest.dtype} tokens)")
    figures = {
        name: {
            "documents": split.documents,
            "tokens": split.tokens,
            "bytes": split.text_bytes,
            "files": len(split.files),
        }
        for name, split in manifest.splits.items()
    }
    write_json(
        arguments.json,
        {
            "out": str(out),
            "dtype": manifest.dtype,
            "tokenizer": manifest.tokenizer.digest,
            "splits": figures,
            "seconds": seconds,
        },
    )
    return 0


class _Progress:
    """One line, redrawn; nothing where nobody watches."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.live = sys.stderr.isatty()

    def show(self, done: int, total: int) -> None:
        """Bytes done of a total."""
        if not self.live:
            return
        seconds = time.perf_counter() - self.began
        left = duration(seconds * (total - done) / max(1, done))
        rate = done / 1e6 / max(1e-9, seconds)
        share = 100 * done / max(1, total)
        line = f"tokenising {done / 1e6:,.1f}/{total / 1e6:,.1f} MB ({share:.0f} %)"
        print(f"\r\x1b[K{line}  {rate:.2f} MB/s  ETA {left}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Take the line away."""
        if self.live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
