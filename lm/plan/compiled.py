"""The compiler's answer: a program with its sizes and text, or that it does not fit, or why not."""

import os
import re
import tempfile
import time
from typing import Any, NamedTuple

import jax

from lm.errors import UserError
from lm.train.program import Program


class CompileError(UserError):
    """The compiler refuses the step for another reason than memory."""


class Shortage(NamedTuple):
    """What a step needs of a device's memory, and what a program may use of it; bytes."""

    needed: float
    available: float


class Sizes(NamedTuple):
    """The compiler's own account of one device's memory, in bytes."""

    peak: float
    """The most at once: arguments, results and temporaries; code not among them."""
    arguments: float
    code: float


class Built(NamedTuple):
    """What compiling a step gave."""

    sizes: Sizes | None
    """None where it does not fit."""
    text: str | None
    """The scheduled program; None where it does not fit or cannot be printed."""
    no_text: str | None
    """Why there is no text."""
    shortage: Shortage | None
    trace_seconds: float
    """Tracing and lowering in Python."""
    compile_seconds: float


def trace(program: Program) -> Any:
    """The step as JAX traces it; has ``jaxpr`` and ``lower()``."""
    step: Any = program.step
    return step.trace(program.state, program.batch)


def build(traced: Any, began: float, name: str) -> Built:
    """Compile a traced step.

    Args:
        traced: of ``trace``.
        began: when tracing began, by ``time.perf_counter``.
        name: of the run, for the file that keeps what the compiler says.

    Raises:
        CompileError: the compiler refuses it, and not for memory.
    """
    lowered = traced.lower()
    start = time.perf_counter()
    spent = start - began
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        seconds = time.perf_counter() - start
        short = shortage(str(error))
        if short is None:
            raise _failed(str(error), name) from error
        return Built(None, None, "the step does not fit", short, spent, seconds)
    seconds = time.perf_counter() - start
    try:
        text, why = compiled.as_text(), None
    except Exception as error:  # a mismatched libtpu cannot print every program
        text, why = None, f"the compiled program cannot be printed ({_first_line(str(error))})"
    return Built(_sizes(compiled.memory_analysis()), text, why, None, spent, seconds)


def shortage(text: str) -> Shortage | None:
    """What an out-of-memory message of a compiler says; None where it is about something else."""
    said = re.search(
        r"\((?P<needed>[\d.]+[KMGT]?)i?B?\) exceeds available HBM \((?P<have>[\d.]+[KMGT]?)", text
    ) or re.search(
        r"Used (?P<needed>[\d.]+[KMGT]?) of (?P<have>[\d.]+[KMGT]?) hbm", text, re.IGNORECASE
    )
    if said is not None:
        return Shortage(_bytes(said["needed"]), _bytes(said["have"]))
    return None


def _sizes(told: Any) -> Sizes:
    """The compiler's account; where its peak leaves temporaries out, or is none, their sum.

    XLA's CPU compiler leaves them out.  A TPU's counts some of the temporaries twice: for Llama 3
    8B on v6e:16x16 its figures sum to 26.3 GiB, its peak is 16.7, and the heap that it lays out in
    the end 17.5 (the gaps are 1 to 5 %, and not in the peak).
    """
    peak = float(getattr(told, "peak_memory_in_bytes", 0) or 0)
    fresh = told.output_size_in_bytes - told.alias_size_in_bytes
    held = told.argument_size_in_bytes + fresh
    if peak - held < told.temp_size_in_bytes / 10:
        peak = float(held + told.temp_size_in_bytes)
    return Sizes(peak, float(told.argument_size_in_bytes), float(told.generated_code_size_in_bytes))


def _bytes(words: str) -> float:
    unit = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}.get(words[-1])
    return float(words) if unit is None else float(words[:-1]) * unit


def _failed(text: str, name: str) -> CompileError:
    handle, path = tempfile.mkstemp(prefix=f"lm-plan-{name}-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    lines = [line.strip() for line in text.splitlines() if line.strip()][:3]
    return CompileError(
        f"{name}: the compiler refuses the step: {' '.join(lines)[:600]} Its whole text is in "
        f"{path}. Try another execution.attention_kernel or mesh, or the libtpu of this jax: "
        "pip install -e '.[plan]'"
    )


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0][:200] if lines else "no reason given"
