"""The command line: what a verb needs is loaded when that verb is chosen, and not before.

A mistake answers as early as it can be seen: words first, then files that are named, then the
config (which loads JAX), then its shapes, mesh and batch, and only then the verb with all that it
stands on.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from lm.checkpoint.layout import newest
from lm.cli.arguments import HELP, Parser, check_plan, parse
from lm.cli.output import check_target
from lm.errors import ResourceError, UserError
from lm.plan.hardware import read_slice


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit code.

    0 is done, 2 a user's mistake, 3 a plan that does not fit, 130 stopped at once; of several
    processes, one that fails ends the others with its code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words)
    except UserError as error:
        told = " ".join(str(error).split())
        print(told if told.startswith("lm") else f"lm: {told}", file=sys.stderr)
        return _left(told, 2)
    except KeyboardInterrupt:
        print("lm: stopped.", file=sys.stderr)
        return _left("stopped", 130)
    except BrokenPipeError:
        # The reader of our output went away; nothing is wrong here.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if joined := _joined():
            joined.leave_failed(error)
        raise


def _left(text: str, code: int) -> int:
    """The exit code; of several processes, one that fails does not wait for the others."""
    if joined := _joined():
        joined.leave(text, code)
    return code


def _joined() -> ModuleType | None:
    """``lm.parallel.distributed``, if this is one of several processes that it joined."""
    module = sys.modules.get("lm.parallel.distributed")
    return module if module is not None and module.several() else None


def _run(words: list[str]) -> int:
    # `lm train CONFIG --help` is about the config: keep argparse from answering first.
    about_config = (
        len(words) > 2
        and words[0] == "train"
        and not words[1].startswith("-")
        and any(word in HELP for word in words[2:])
    )
    known = [w for w in words if w not in HELP] if about_config else words
    started = time.monotonic()
    arguments, rest = parse(known or ["--help"])
    arguments.started = started
    if about_config:
        given = import_module("lm.cli.config").load_experiment(arguments.config)
        import_module("lm.cli.listing").show_values(given, arguments.config)
        return 0
    _look_first(arguments, rest)
    try:
        return import_module(f"lm.cli.{arguments.verb}").run(arguments)
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


def _look_first(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Find what can be wrong without the verb, and give it the experiment that a config names.

    Raises:
        UserError: a file that is missing or cannot be written, a config or a value in it.
    """
    if arguments.json is not None:
        check_target(arguments.json)
    named = vars(arguments)
    if arguments.verb == "plan":
        check_plan(arguments)
        if arguments.write is not None:
            check_target(arguments.write, "--write")
        asked = arguments.topology or arguments.devices
        arguments.asked = read_slice(asked, arguments.slices or 1)
    if "checkpoint" in named:
        newest(Path(arguments.checkpoint))
    config = named.get("config") or named.get("thing")
    if config is None or ("thing" in named and Path(config).is_dir()):
        if rest:
            Parser(prog=f"lm {arguments.verb}").error(
                f"unrecognized arguments: {' '.join(rest)}; only a config's values can be changed"
            )
        return
    # The experiment's parts are JAX's; the verb's own libraries are as many again.
    arguments.given = import_module("lm.cli.config").load_experiment(config)
    override = import_module("lm.cli.overrides").override
    arguments.experiment = override(arguments.given, rest)
    arguments.words = rest
    if arguments.verb in ("plan", "doctor"):
        return  # its devices are elsewhere; what is wrong with them is the doctor's to tell
    program_of = import_module("lm.cli.shapes").program_of
    arguments.program = program_of(arguments.experiment, joined=arguments.verb == "train")


if __name__ == "__main__":
    sys.exit(main())
