"""What every verb takes.  Standard library only: help and mistakes answer at once."""

import argparse
from collections.abc import Callable, Sequence
from typing import NoReturn

from lm import __version__
from lm.errors import ConfigError, did_you_mean

CONFIG = "a Python file with experiment() -> Experiment, as path.py[:function], or experiment.json"
CHECKPOINT = "a run's folder (its newest whole checkpoint), or one of its checkpoints/STEP folders"


class Parser(argparse.ArgumentParser):
    """Reports a mistake as one of ours, with the nearest right name."""

    def error(self, message: str) -> NoReturn:
        """Turn argparse's message into a paragraph.

        Raises:
            ConfigError: always.
        """
        names = [o for a in self._actions for o in a.option_strings if o.startswith("--")]
        said = message.split(": ")[-1].split()
        hint = did_you_mean(said[0], names) if said and said[0].startswith("--") else ""
        raise ConfigError(f"{self.prog}: {message}. {hint}See: {self.prog} --help")


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The verb's arguments, and what only the verb understands (overrides of a config).

    Raises:
        ConfigError: an unknown verb or option, a missing or malformed value.
    """
    if len(argv) > 0 and not argv[0].startswith("-") and argv[0] not in VERBS:
        raise ConfigError(
            f"lm: no verb {argv[0]!r}. {did_you_mean(argv[0], VERBS)}"
            f"Choose from: {', '.join(VERBS)}."
        )
    parser = Parser(prog="lm", description=DESCRIPTION, epilog=EPILOG, formatter_class=FORMAT)
    parser.add_argument("--version", action="version", version=f"lm {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, add in VERBS.items():
        add(verbs, name)
    arguments, rest = parser.parse_known_args(argv)
    if rest and not getattr(arguments, "overrides", False):
        chosen = verbs.choices[arguments.verb]
        chosen.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments, rest


FORMAT = argparse.RawDescriptionHelpFormatter
DESCRIPTION = "Pretrain, evaluate and export language models in JAX."
EPILOG = """\
from text to a model that the world can read:
  lm tokenizer train text/ --kind sentencepiece --vocab-size 8192 --out data/tokenizer
  lm corpus tokenize text/ --tokenizer data/tokenizer --out data/mine --held-out 0.02
  lm train configs/quickstart.py
  lm evaluate runs/quickstart
  lm generate runs/quickstart --prompt "ROMEO."
  lm export runs/quickstart exported/

lm VERB --help says more.  Exit codes: 0 done, 2 a mistake that you can mend, 1 a bug of ours.
"""


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json",
        metavar="-|FILE",
        help="also write the figures as JSON; with - stdout carries nothing else",
    )


def _verb(verbs: argparse._SubParsersAction, name: str, help: str, epilog: str) -> Parser:
    return verbs.add_parser(
        name, help=help, description=help, epilog=epilog, formatter_class=FORMAT
    )


def _tokenizer(verbs: argparse._SubParsersAction, name: str) -> None:
    parser = _verb(verbs, name, "Train a tokenizer on text.", "")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    train = actions.add_parser(
        "train",
        help="train on files and write a folder",
        description="Train a tokenizer on text files, JSONL, .gz or .zst of these, folders, globs.",
        epilog="example:\n  lm tokenizer train text/ --vocab-size 8192 --out data/tokenizer\n\n"
        "The same text and settings give the same tokenizer.  Decoding gives the text back\n"
        "exactly: newlines, double spaces and unknown characters are kept.",
        formatter_class=FORMAT,
    )
    train.add_argument("input", nargs="+", metavar="INPUT", help="files, folders or globs")
    train.add_argument(
        "--kind",
        choices=("sentencepiece", "bpe", "bytes", "characters"),
        default="sentencepiece",
        help="sentencepiece (default), bpe (byte-level, Hugging Face), bytes or characters",
    )
    train.add_argument("--vocab-size", type=int, metavar="N", help="ids in all, special ones too")
    train.add_argument("--out", required=True, metavar="DIR", help="folder to write; must be new")
    train.add_argument("--field", default="text", help="field of JSONL records (default: text)")
    _json(train)


def _corpus(verbs: argparse._SubParsersAction, name: str) -> None:
    parser = _verb(verbs, name, "Turn text into shards of tokens.", "")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    tokenize = actions.add_parser(
        "tokenize",
        help="tokenise files into a folder of shards",
        description="Tokenise text (.txt and the like, .jsonl, .parquet; also .gz and .zst; "
        "folders and globs) into memory-mapped shards with a manifest.",
        epilog="example:\n  lm corpus tokenize text/ --tokenizer data/tokenizer --out data/mine "
        "--held-out 0.02\n\nA text file is one document, a JSONL line is one document.  Documents "
        "are held out by\na hash of their name, so the choice stays when the corpus grows.",
        formatter_class=FORMAT,
    )
    tokenize.add_argument("input", nargs="+", metavar="INPUT", help="files, folders or globs")
    tokenize.add_argument("--tokenizer", required=True, metavar="DIR", help="a tokenizer's folder")
    tokenize.add_argument("--out", required=True, metavar="DIR", help="folder to write; new")
    tokenize.add_argument(
        "--held-out",
        type=float,
        default=0.0,
        metavar="FRACTION",
        help="share of the documents never to train on (default: 0)",
    )
    tokenize.add_argument("--field", default="text", help="field of records (default: text)")
    _json(tokenize)


def _train(verbs: argparse._SubParsersAction, name: str) -> None:
    parser = _verb(
        verbs,
        name,
        "Train a model as a config says, or go on with a run that was stopped.",
        "Any value of the config can be changed: --optimizer.schedule.peak 2e-4 "
        "--training.steps 500.\n`lm train CONFIG --help` lists them all.  Ctrl-C or SIGTERM saves "
        "and exits 0; the same command\ngoes on from there.  A run with another model, data or "
        "seed is never overwritten.",
    )
    parser.set_defaults(overrides=True)
    parser.add_argument("config", metavar="CONFIG", help=CONFIG)
    parser.add_argument("--runs", default="runs", metavar="DIR", help="where runs are kept")
    parser.add_argument("--name", metavar="NAME", help="name of the run, instead of the config's")
    parser.add_argument(
        "--restart", action="store_true", help="move a run of this name aside and begin anew"
    )
    _json(parser)


def _evaluate(verbs: argparse._SubParsersAction, name: str) -> None:
    parser = _verb(
        verbs,
        name,
        "Score a checkpoint on a whole held-out set.",
        "Loss in nats a token, perplexity, bits per byte.  Every token but BOS is scored once, "
        "each\ndocument in windows of the trained length; the figures are the same for every "
        "batch size and mesh.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT)
    parser.add_argument(
        "--data", metavar="DIR|FILE", help="shards or text (default: the run's held-out set)"
    )
    parser.add_argument(
        "--batch", type=int, metavar="N", help="rows of a batch (default: the run's)"
    )
    parser.add_argument(
        "--with", dest="evaluators", nargs="+", default=["perplexity"], metavar="EVALUATOR",
        help="what to measure (default and only choice here: perplexity)",
    )  # fmt: skip
    _json(parser)


def _generate(verbs: argparse._SubParsersAction, name: str) -> None:
    parser = _verb(
        verbs,
        name,
        "Continue prompts with a checkpoint.",
        'example:\n  lm generate runs/quickstart --prompt "ROMEO." --prompt "JULIET." '
        "--temperature 0.8\n\nOne prompt is streamed as it is written; several are written "
        "together and shown in order.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT)
    parser.add_argument(
        "--prompt", action="append", metavar="P", help="a text to go on from; may be repeated"
    )
    parser.add_argument("--max-tokens", type=int, default=200, metavar="N", help="default: 200")
    parser.add_argument(
        "--temperature", type=float, default=0.8, help="0 takes the likeliest (default: 0.8)"
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="choose among the K likeliest")
    parser.add_argument(
        "--top-p", type=float, metavar="P", help="choose among the likeliest that sum to P"
    )
    parser.add_argument("--seed", type=int, default=0, help="same seed, same text (default: 0)")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="S", help="end before this text; repeatable"
    )
    _json(parser)


def _export(verbs: argparse._SubParsersAction, name: str) -> None:
    parser = _verb(
        verbs,
        name,
        "Write a checkpoint as a Hugging Face folder.",
        "Sharded safetensors, config.json, generation_config.json, tokenizer files and a model "
        "card.\ntransformers loads the folder as it is.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT)
    parser.add_argument("out", metavar="OUT", help="folder to write; must be new")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="dtype of the weights (default: float32)",
    )
    _json(parser)


def _inspect(verbs: argparse._SubParsersAction, name: str) -> None:
    parser = _verb(
        verbs,
        name,
        "Show a config, run or checkpoint: sizes, shardings, settings, what it stands on.",
        "Of a checkpoint, --verify reads everything back and compares it with its digests.",
    )
    parser.add_argument("thing", metavar="CONFIG|RUN|CHECKPOINT", help="what to look at")
    parser.add_argument(
        "--verify", action="store_true", help="check every leaf and file of a checkpoint"
    )
    _json(parser)


def _report(verbs: argparse._SubParsersAction, name: str) -> None:
    parser = _verb(verbs, name, "Draw a run's curves into a self-contained report.html.", "")
    parser.add_argument("run", metavar="RUN", help="a run's folder")
    _json(parser)


VERBS: dict[str, Callable[[argparse._SubParsersAction, str], None]] = {
    "tokenizer": _tokenizer,
    "corpus": _corpus,
    "train": _train,
    "evaluate": _evaluate,
    "generate": _generate,
    "export": _export,
    "inspect": _inspect,
    "report": _report,
}
