"""What every verb takes.  Standard library only: help and mistakes answer at once."""

import argparse
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from lm import __version__
from lm.errors import ConfigError, did_you_mean

CONFIG = "a Python file with experiment() -> Experiment, as path.py[:function], or experiment.json"
CHECKPOINT = "a run's folder (its newest whole checkpoint), or one of its checkpoints/STEP folders"


class Parser(argparse.ArgumentParser):
    """Reports a mistake as one of ours, with the nearest right name."""

    def __init__(self, **settings: Any) -> None:
        """No option may be shortened: ``--n`` could as well be a value of the config."""
        super().__init__(**settings, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Turn argparse's message into a paragraph.

        Raises:
            ConfigError: always.
        """
        names = [o for a in self._actions for o in a.option_strings if o.startswith("--")]
        said = message.split(": ")[-1].split()
        hint = did_you_mean(said[0], names) if said and said[0].startswith("--") else ""
        if choice := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            hint = did_you_mean(choice[1], re.findall(r"[\w-]+", choice[2]))
        raise ConfigError(f"{self.prog}: {message}. {hint}See: {self.prog} --help")


def whole(least: int) -> Callable[[str], int]:
    """Reads a whole number that is ``least`` or more."""

    def read(word: str) -> int:
        if not re.fullmatch(r"-?[0-9][0-9_]*", word):
            raise argparse.ArgumentTypeError(f"{word!r} is not a whole number")
        if int(word) < least:
            raise argparse.ArgumentTypeError(f"{word} is too little; give {least} or more")
        return int(word)

    return read


def number(fits: Callable[[float], bool], wanted: str) -> Callable[[str], float]:
    """Reads a number that fits; ``wanted`` says in words which do."""

    def read(word: str) -> float:
        try:
            value = float(word)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{word!r} is not a number") from None
        if not fits(value):
            raise argparse.ArgumentTypeError(f"{word}: give {wanted}")
        return value

    return read


def steps(word: str) -> tuple[int, int]:
    """Reads ``10:13``, the first and the last of some steps."""
    found = re.fullmatch(r"([0-9]+):([0-9]+)", word)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"{word!r}: give the first and the last step, as 10:13")
    return int(found[1]), int(found[2])


def span(word: str) -> float:
    """Reads ``3h50m``, ``90s`` or ``1d``: seconds."""
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)([dhms])", word)
    if not parts or "".join(n + unit for n, unit in parts) != word:
        raise argparse.ArgumentTypeError(f"{word!r}: give a time such as 3h50m, 90s or 1d")
    return sum(float(n) * SECONDS[unit] for n, unit in parts)


SECONDS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The verb's arguments, and what only the verb understands (overrides of a config).

    Raises:
        ConfigError: an unknown verb or option, a missing or malformed value.
    """
    words = (*VERBS, *HELP, "--version")
    if argv and argv[0] not in words:
        raise ConfigError(
            f"lm: no verb {argv[0]!r}. {did_you_mean(argv[0], words)}"
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


HELP = ("-h", "--help")
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

lm VERB --help says more.  Exit codes: 0 done, 2 a mistake that you can mend, 3 a plan
that does not fit, 1 a bug of ours (of lm doctor: something is wrong).
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
    train.add_argument(
        "--vocab-size", type=whole(1), metavar="N", help="ids in all, special ones too"
    )
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
        type=number(lambda x: 0 <= x < 1, "a share from 0 up to, but not, 1"),
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
    parser.add_argument(
        "--stop-after",
        type=span,
        metavar="TIME",
        help="save and end in good order after this time, as 3h50m; the same command goes on",
    )
    parser.add_argument(
        "--on-spike",
        choices=("report", "skip", "rollback"),
        help="a loss or gradient norm far above those before: tell it (default), leave the update "
        "out, or go back to the newest checkpoint and on beyond the data between",
    )
    parser.add_argument(
        "--profile",
        type=steps,
        metavar="A:B",
        help="trace steps A to B with JAX's profiler, into RUN/profile",
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
        "--batch", type=whole(1), metavar="N", help="rows of a batch (default: the run's)"
    )
    parser.add_argument(
        "--with",
        dest="evaluators",
        nargs="+",
        choices=("perplexity",),
        default=["perplexity"],
        metavar="EVALUATOR",
        help="what to measure (default and only choice here: perplexity)",
    )
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
    parser.add_argument(
        "--max-tokens", type=whole(1), default=200, metavar="N", help="default: 200"
    )
    parser.add_argument(
        "--temperature",
        type=number(lambda x: 0 <= x < float("inf"), "0 (always the likeliest token) or more"),
        default=0.8,
        metavar="X",
        help="0 takes the likeliest (default: 0.8)",
    )
    parser.add_argument("--top-k", type=whole(1), metavar="K", help="choose among the K likeliest")
    parser.add_argument(
        "--top-p",
        type=number(lambda x: 0 < x <= 1, "a probability above 0 and up to 1"),
        metavar="P",
        help="choose among the likeliest that sum to P",
    )
    parser.add_argument(
        "--seed", type=whole(0), default=0, metavar="N", help="same seed, same text (default: 0)"
    )
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
        "Of a checkpoint, --verify reads everything back and compares it with its digests.  Of a\n"
        "config, values can be changed as for lm train.",
    )
    parser.set_defaults(overrides=True)
    parser.add_argument("thing", metavar="CONFIG|RUN|CHECKPOINT", help="what to look at")
    parser.add_argument(
        "--verify", action="store_true", help="check every leaf and file of a checkpoint"
    )
    _json(parser)


def _plan(verbs: argparse._SubParsersAction, name: str) -> None:
    parser = _verb(
        verbs,
        name,
        "Say whether a run fits a TPU slice, and how fast it can be there, without the slice.",
        "example:\n  lm plan configs/quickstart.py --topology v5e:4x4\n\nCompiles the run's own "
        "step for the slice: memory and its parts, what travels between the chips,\nthe least "
        "time a step can take.  Values of the config can be changed as for lm train.  Exits\n"
        "with 3 where the run does not fit, naming changes with which it does.  For TPUs it needs\n"
        "libtpu: pip install -e '.[plan]'\n\n  lm plan configs/quickstart.py --topology v5e:4x4 "
        "--search --write fastest.json\n\nlooks for the mesh, the recomputation and the "
        "microbatches of the fastest step that fits.",
    )
    parser.set_defaults(overrides=True)
    parser.add_argument("config", metavar="CONFIG", help=CONFIG)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--topology",
        metavar="V:AxB",
        help="version and grid of the slice: v5e:16x16, v6e:8x8, v4:4x4x4, v5p:4x4x8, tpu7x:4x4x4",
    )
    where.add_argument("--devices", metavar="cpu:N", help="N virtual processors of this machine")
    parser.add_argument(
        "--slices",
        type=whole(1),
        metavar="N",
        help="so many slices, joined by the data-centre network (default: the config's)",
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help="guess every mesh, recomputation and number of microbatches, compile the best, and "
        "rank them by the time of a step",
    )
    parser.add_argument(
        "--any-batch",
        action="store_true",
        help="with --search: also a quarter to four times the rows a step (another training); "
        "ranked by the time of a token",
    )
    parser.add_argument(
        "--compiles",
        type=whole(1),
        metavar="N",
        help="with --search: so many to the end; what does not fit is told early (default: 8)",
    )
    parser.add_argument(
        "--minutes",
        type=number(lambda x: 0 < x < float("inf"), "a number of minutes above 0"),
        metavar="M",
        help="with --search: begin no compile that would end later (default: 9)",
    )
    parser.add_argument(
        "--write", metavar="FILE", help="with --search: write the fastest config, as FILE.json"
    )
    parser.add_argument(
        "--no-cache",
        action="store_true",
        help="with --search: compile again what is remembered in ~/.cache/lm/plans",
    )
    _json(parser)


def check_plan(arguments: argparse.Namespace) -> None:
    """What the options of a plan must agree on.

    Raises:
        ConfigError: options of a search without one, or a search that nothing can rank.
    """
    of_search = {
        "--any-batch": arguments.any_batch,
        "--compiles": arguments.compiles is not None,
        "--minutes": arguments.minutes is not None,
        "--write": arguments.write is not None,
        "--no-cache": arguments.no_cache,
    }
    given = [name for name, value in of_search.items() if value]
    if given and not arguments.search:
        raise ConfigError(
            f"{' '.join(given)}: only for a search. Add --search, or leave it out: lm plan alone "
            "compiles the config as it is."
        )
    if arguments.search and arguments.devices is not None:
        raise ConfigError(
            f"--search --devices {arguments.devices}: no figures are published for a processor, so "
            "that nothing can be ranked. Name a TPU slice: --topology v5e:4x4"
        )
    if arguments.write is not None and not arguments.write.endswith(".json"):
        raise ConfigError(
            f"--write {arguments.write}: the config is written as JSON. Give a name that ends in "
            f".json: --write {arguments.write}.json"
        )


def _report(verbs: argparse._SubParsersAction, name: str) -> None:
    parser = _verb(verbs, name, "Draw a run's curves into a self-contained report.html.", "")
    parser.add_argument("run", metavar="RUN", help="a run's folder")
    _json(parser)


def _doctor(verbs: argparse._SubParsersAction, name: str) -> None:
    parser = _verb(
        verbs,
        name,
        "Say whether this machine, or pod, is fit to train, and what to mend.",
        "Versions, devices, mesh, sums over each axis and their speed, clocks, hosts, storage and\n"
        "the loader's rate.  On a pod start it on every host, as lm train: process 0 tells of all."
        "\nExits with 1 where something is WRONG.  With a CONFIG, whose values can be changed as "
        "for\nlm train, its mesh, checkpoints and data are looked at.",
    )
    parser.set_defaults(overrides=True, experiment=None)
    parser.add_argument("config", nargs="?", metavar="CONFIG", help=CONFIG)
    parser.add_argument("--runs", default="runs", metavar="DIR", help="where runs will be kept")
    parser.add_argument("--data", metavar="DIR", help="shards to load, instead of the config's")
    parser.add_argument(
        "--seconds",
        type=number(lambda x: 5 <= x < float("inf"), "5 seconds or more"),
        default=30.0,
        metavar="N",
        help="take no longer than this, unless something hangs (default: 30)",
    )
    _json(parser)


VERBS: dict[str, Callable[[argparse._SubParsersAction, str], None]] = {
    "tokenizer": _tokenizer,
    "corpus": _corpus,
    "train": _train,
    "evaluate": _evaluate,
    "generate": _generate,
    "export": _export,
    "inspect": _inspect,
    "plan": _plan,
    "report": _report,
    "doctor": _doctor,
}
