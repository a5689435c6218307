"""Start a run: here, on a SLURM cluster, on a TPU VM pod, or on Kubernetes.

    python -m launch local --processes 4 -- lm train my_config.py
    python -m launch tpu-vm --name llama --type v5e-64 --zone us-west4-a -- lm train my_config.py

``local`` starts at once and keeps the run going.  The others print what would be run, as shell that
can be copied; ``--go`` runs it.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from launch.attempt import Watch
from launch.job import Command, Job, LaunchError, duration, run
from launch.local import Local


class _Parser(argparse.ArgumentParser):
    """Raises on a mistake instead of printing the usage and leaving."""

    def error(self, message: str) -> NoReturn:
        raise LaunchError(f"{message}. {self.prog} --help lists the options.")


def main(argv: Sequence[str] | None = None) -> int:
    """Launch; returns the exit code, 2 where the words make no sense."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        own, command = _split(words)
        arguments = _parser().parse_args(own)
        return arguments.run(arguments, command)
    except LaunchError as error:
        print(f"launch: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 0


def _split(words: list[str]) -> tuple[list[str], tuple[str, ...]]:
    if "--" not in words:
        return words, ()
    at = words.index("--")
    return words[:at], tuple(words[at + 1 :])


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m launch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="launcher", required=True, metavar="LAUNCHER")
    _add_local(verbs.add_parser)
    return parser


Adder = Callable[..., argparse.ArgumentParser]
Runner = Callable[[argparse.Namespace, tuple[str, ...]], int]


def _add(add_parser: Adder, name: str, text: str, runner: Runner) -> argparse.ArgumentParser:
    parser = add_parser(
        name, help=text, description=text, allow_abbrev=False, usage=f"{name} [options] -- COMMAND"
    )
    parser.set_defaults(run=runner)
    parser.add_argument(
        "--env",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a variable of the command's environment; may be repeated",
    )
    return parser


def _job(arguments: argparse.Namespace, command: tuple[str, ...]) -> Job:
    pairs: list[tuple[str, str]] = []
    for given in arguments.env:
        name, sign, value = str(given).partition("=")
        if not sign:
            raise LaunchError(f"--env {given}: write NAME=VALUE.")
        pairs.append((name, value))
    return Job(name=arguments.name, command=command, environment=tuple(pairs))


def _seconds(text: str) -> float:
    try:
        return duration(text)
    except LaunchError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _show_or_run(commands: list[Command], *, go: bool) -> int:
    if go:
        return run(commands)
    print("\n".join(command.text() for command in commands), end="")
    return 0


def _add_local(add_parser: Adder) -> None:
    parser = _add(add_parser, "local", "run here, watched and restarted", _local)
    add = parser.add_argument
    add("--processes", type=int, default=1, help="how many (1)")
    add("--devices-per-process", type=int, help="virtual CPU devices of each")
    add("--gpus-per-process", type=int, help="GPUs of each, in order")
    add("--attempts", type=int, help="the most attempts in all (no bound)")
    add("--give-up", type=int, default=3, help="failures in a row at one step that end it (3)")
    add("--back-off", type=_seconds, default=5, help="pause before the second attempt (5s)")
    add("--longest-back-off", type=_seconds, default=300, help="longest pause (5m)")
    add("--silence", type=_seconds, default=20, help="age of a heartbeat that means frozen (20s)")
    add("--start", type=_seconds, default=120, help="time for the first heartbeat (2m)")
    add("--grace", type=_seconds, default=5, help="from SIGTERM to SIGKILL in a failure (5s)")
    add("--logs", type=Path, help="folder for the output of every process (logs)")
    add("--all", action="store_true", help="show the output of every process, not only of 0")
    add("--stopped-code", type=int, default=0, help="exit code of a run stopped as asked (0)")
    add("--dry-run", action="store_true", help="print the commands and start nothing")
    parser.set_defaults(name="run")


def _local(arguments: argparse.Namespace, command: tuple[str, ...]) -> int:
    local = Local(
        job=_job(arguments, command),
        processes=arguments.processes,
        devices_per_process=arguments.devices_per_process,
        gpus_per_process=arguments.gpus_per_process,
        attempts=arguments.attempts,
        give_up=arguments.give_up,
        back_off=arguments.back_off,
        longest_back_off=arguments.longest_back_off,
        watch=Watch(
            silence=arguments.silence,
            start=arguments.start,
            grace=arguments.grace,
            show_all=arguments.all,
        ),
        logs=arguments.logs,
        stopped_code=arguments.stopped_code,
    )
    if arguments.dry_run:
        return _show_or_run(local.commands(), go=False)
    return local.supervise()


if __name__ == "__main__":
    sys.exit(main())
