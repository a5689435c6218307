"""How fast the loader delivers, against what the steps of the run take."""

import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lm.corpus.prepare import prepared_folder
from lm.data.loader import Loader
from lm.data.mixture import Mixture, Weighted
from lm.data.shards import Shards
from lm.data.synthetic import Synthetic
from lm.doctor.check import Check
from lm.errors import ConfigError, CorpusError
from lm.experiment import Experiment
from lm.objectives.causal import CausalLm
from lm.shards import read_manifest
from lm.track.format import count
from lm.train.step import Training

METRICS = "metrics.jsonl"
STEPS = 50
"""The last steps of a run, of which the median counts."""
ENOUGH = 1.5
"""Times what the steps take: so much spare is wanted."""
USUAL = Training(steps=1, sequences=8, length=2048)
"""What is loaded where no config says."""
VOCABULARY = 32_768


def facts(
    experiment: Experiment | None,
    data: Path | None,
    rows: np.ndarray | None,
    runs: Path,
    seconds: float,
) -> dict[str, Any]:
    """Tokens a second that this process loads, and what it needs; ``rows`` are its own."""
    training = USUAL if experiment is None else experiment.training
    mixture, missing, mend = _mixture(experiment, data)
    what = "synthetic"
    blend = None
    if mixture is not None:
        try:
            digest = None
            if experiment is not None and experiment.tokenizer is not None and data is None:
                digest = experiment.tokenizer.build().digest
            blend = mixture.build(training.length, digest)
            what = "the config's data" if data is None else str(data)
        except (CorpusError, ConfigError) as error:
            missing, mend = "the data cannot be read", " ".join(str(error).split())
    if blend is None:
        source = Synthetic(vocab_size=VOCABULARY)
        blend = Mixture(sources=(Weighted(source=source),)).build(training.length)
    loader = Loader(
        blend=blend,
        objective=CausalLm() if experiment is None else experiment.objective,
        sequences=training.sequences,
        seed=training.seed,
        rows=rows,
    )
    each = training.tokens_per_step
    pace = None if experiment is None else step_seconds(runs / experiment.name)
    return {
        "data": what,
        "missing": missing,
        "mend": mend,
        # A process loads its own rows; the run has a batch when all have theirs.
        "tokens_per_second": each / batch_seconds(loader, seconds),
        "tokens_per_step": each,
        "needed": None if pace is None else each / pace,
    }


def judge(told: Mapping[int, Any], names: Callable[[Iterable[int]], str]) -> Iterator[Check]:
    """One line: the slowest process's rate, for all wait for it."""
    slowest = min(told, key=lambda rank: told[rank]["tokens_per_second"])
    t = told[slowest]
    rate, needed = t["tokens_per_second"], t["needed"]
    figures = {k: t[k] for k in ("data", "tokens_per_second", "tokens_per_step", "needed")}
    said = f"{count(rate)} tokens/s of {t['data']}"
    said += f" (slowest: {names([slowest])})" if len(told) > 1 else ""
    if needed:
        said += f"; the last run's steps take {count(needed)}"
    missing = {rank: m["missing"] for rank, m in told.items() if m["missing"]}
    if missing:
        rank = min(missing)
        where = f" on {names(missing)}" if len(told) > 1 else ""
        status = "warn" if missing[rank] == NOT_PREPARED else "WRONG"
        yield Check(
            "loader", status, f"{missing[rank]}{where}; {said}", figures, told[rank]["mend"]
        )
    elif needed and rate < ENOUGH * needed:
        mend = "Put the data on a faster disk of each host, or give the hosts more cores."
        yield Check("loader", "WRONG" if rate < needed else "warn", said, figures, mend)
    else:
        yield Check("loader", "ok", said, figures)


NOT_PREPARED = "the data is not prepared yet"


def _mixture(
    experiment: Experiment | None, data: Path | None
) -> tuple[Mixture | None, str | None, str | None]:
    """(what to read, what is missing, what to do about it)."""
    if data is not None:
        return Mixture(sources=(Weighted(source=Shards(path=str(data))),)), None, None
    if experiment is None:
        return None, None, None
    folder = None
    if experiment.prepare is not None:
        try:
            folder = prepared_folder(experiment.prepare)
            if experiment.data is None:
                read_manifest(folder)
        except CorpusError as error:
            if folder is None:  # its inputs are not there
                return None, "the text is missing", " ".join(str(error).split())
            mend = "lm train makes it at its start; nothing else is needed."
            return None, NOT_PREPARED, mend
    if experiment.data is not None:
        return experiment.data, None, None
    return Mixture(sources=(Weighted(source=Shards(path=str(folder))),)), None, None


def batch_seconds(loader: Loader, seconds: float) -> float:
    """Seconds for a batch, once those made ahead are used up."""
    prefetch = 4
    with loader.stream(prefetch=prefetch) as stream:
        next(stream)  # opens files, starts threads
        for _ in range(prefetch):
            next(stream)
        made, began = 0, time.perf_counter()
        while not made or time.perf_counter() - began < seconds:
            next(stream)
            made += 1
        return (time.perf_counter() - began) / made


def step_seconds(run: Path) -> float | None:
    """What a step of the run takes without its wait for data: the median of the last ones."""
    try:
        lines = (run / METRICS).read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found: list[float] = []
    for line in lines[-4 * STEPS :]:
        try:
            values = json.loads(line)
            found.append(values["time/step_seconds"] - values.get("data/wait_seconds", 0.0))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # a torn line, or one of an evaluation
    return statistics.median(found[-STEPS:]) if found else None
