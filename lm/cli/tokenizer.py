"""``lm tokenizer train``: text -> a tokenizer."""

import argparse
import time
from pathlib import Path

from lm.cli.output import people, write_json
from lm.corpus.readers import read_documents
from lm.tokenizers.training import train_tokenizer
from lm.track.format import duration


def run(arguments: argparse.Namespace) -> int:
    """Train; returns the exit code."""
    out, began = Path(arguments.out), time.perf_counter()
    read = {"documents": 0, "bytes": 0}

    def texts():
        for document in read_documents(arguments.input, arguments.field):
            read["documents"] += 1
            read["bytes"] += len(document.text.encode("utf-8"))
            yield document.text

    with people(arguments.json):
        print(f"reading    {' '.join(arguments.input)}")
        tokenizer = train_tokenizer(arguments.kind, texts(), arguments.vocab_size, out)
        seconds = time.perf_counter() - began
        print(
            f"tokenizer  {arguments.kind}, {tokenizer.vocab_size:,} ids, from "
            f"{read['documents']:,} documents, {read['bytes'] / 1e6:.2f} MB, in {duration(seconds)}"
        )
        print(f"written    {out} (digest {tokenizer.digest[:12]})")
        print(f"next       lm corpus tokenize INPUT --tokenizer {out} --out data/mine")
    write_json(
        arguments.json,
        {
            "out": str(out),
            "kind": arguments.kind,
            "vocab_size": tokenizer.vocab_size,
            "digest": tokenizer.digest,
            **read,
            "seconds": seconds,
        },
    )
    return 0
