"""The command line: a verb's module is loaded when that verb is chosen, and not before."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from lm.cli.arguments import parse
from lm.errors import ResourceError, UserError

CONFIG_HELP = ("-h", "--help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit code: 0 done, 2 a user's mistake, 3 a plan that does not fit."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words)
    except UserError as error:
        print(f"lm: {error}" if not str(error).startswith("lm") else str(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lm: stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output went away; nothing is wrong here.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(words: list[str]) -> int:
    # `lm train CONFIG --help` is about the config: keep argparse from answering first.
    about_config = (
        len(words) > 2
        and words[0] == "train"
        and not words[1].startswith("-")
        and any(word in CONFIG_HELP for word in words[2:])
    )
    known = [w for w in words if w not in CONFIG_HELP] if about_config else words
    arguments, rest = parse(known or ["--help"])
    if about_config:
        rest = [*rest, "--help"]
    try:
        return import_module(f"lm.cli.{arguments.verb}").run(arguments, rest)
    except MemoryError as error:
        raise ResourceError(
            f"memory: this machine has not enough of it ({error or 'allocation failed'}). "
            "Use a smaller batch, length or model."
        ) from error
    except Exception as error:
        if type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error):
            raise ResourceError(
                f"memory: a device ran out of it: {str(error).splitlines()[0]} Use fewer "
                "sequences a step, more microbatches, execution.remat=block, or more devices."
            ) from error
        raise


if __name__ == "__main__":
    sys.exit(main())
