"""What is to run, and the commands that a launcher makes of it."""

import difflib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

# A label of the domain name system (RFC 1035), which clouds ask of their names.
_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

# Exit codes of what is launched: the user's to mend, so that another try is no use; and, from
# ``launch local --stopped-code``, stopped before the end, so that another start goes on.
MISTAKE = 2
UNFINISHED = 75


class LaunchError(ValueError):
    """A mistake that the user can mend; the message is one paragraph, the exit code 2."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command with its name and environment.

    Raises:
        LaunchError: no command, or a variable whose name or value no shell can hold.
    """

    name: str = "run"
    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not self.command or not self.command[0]:
            raise LaunchError(
                "no command was given: write it after two dashes, as in -- lm train my_config.py"
            )
        for name, value in self.environment:
            if not _VARIABLE.fullmatch(name):
                raise LaunchError(
                    f"--env {name}={value}: {name!r} is no name of a variable; use letters, "
                    "digits and underscores, and no digit first."
                )
        for word in (*self.command, *(value for _, value in self.environment)):
            if "\0" in word:
                raise LaunchError(f"{word!r} holds a zero byte, which no command line can pass on.")


class Command(NamedTuple):
    """One thing to run: its words, what it reads on standard input, and why."""

    argv: tuple[str, ...]
    description: str
    stdin: str = ""

    def text(self) -> str:
        """The command as shell that can be copied and pasted."""
        lines = [f"# {line}".rstrip() for line in self.description.splitlines()]
        words = shlex.join(self.argv)
        if not self.stdin:
            return "\n".join([*lines, words, ""])
        end = "END"
        while end in self.stdin.splitlines():
            end += "_"
        return "\n".join([*lines, f"{words} <<'{end}'", self.stdin.rstrip("\n"), end, ""])


def run(commands: Sequence[Command]) -> int:
    """Run one after the other; the exit code of the first that fails, or 0."""
    for command in commands:
        print(f"launch: {command.description.splitlines()[0]}", file=sys.stderr, flush=True)
        try:
            done = subprocess.run(command.argv, input=command.stdin.encode(), check=False)
        except FileNotFoundError as error:
            raise LaunchError(
                f"{command.argv[0]} is not on this machine's PATH: install it, or leave out --go "
                "and run the printed commands where it is."
            ) from error
        except KeyboardInterrupt:
            return 130
        if done.returncode:
            print(
                f"launch: {command.argv[0]} failed with exit code {done.returncode}; "
                "what comes after it was not run.",
                file=sys.stderr,
            )
            return done.returncode if done.returncode > 0 else 128 - done.returncode
    return 0


def check_label(name: str, longest: int, why: str) -> None:
    """Refuse what is no DNS label of at most ``longest`` characters.

    Raises:
        LaunchError: with a name that would do.
    """
    if _LABEL.fullmatch(name) and len(name) <= longest:
        return
    near = re.sub(r"[^a-z0-9]+", "-", name.lower()).lstrip("-0123456789")[:longest].rstrip("-")
    raise LaunchError(
        f"--name {name}: {why} wants at most {longest} small letters, digits and dashes, a letter "
        f"first and no dash last; for instance {near or 'run'!r}."
    )


def check_positive(**values: float | None) -> None:
    """Refuse sizes and times that are not above zero.

    Raises:
        LaunchError: naming the option and its value.
    """
    for name, value in values.items():
        if value is not None and value <= 0:
            raise LaunchError(f"--{name.replace('_', '-')} {value:g} must be above zero.")


def nearest(name: str, choices: Iterable[str], count: int = 3) -> str:
    """The nearest choices as a list in words, or all of them where none is near."""
    known = list(choices)
    return ", ".join(difflib.get_close_matches(name, known, n=count, cutoff=0.5) or known)


_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def duration(text: str) -> float:
    """A time as ``3h50m``, ``20s`` or ``20``, in seconds.

    Raises:
        LaunchError: anything else.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise LaunchError(f"{text!r} is no time: write seconds, or for instance 90s, 20m, 3h50m")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)
