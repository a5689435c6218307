"""What was in a batch with bad numbers, written out for a person to look at."""

from pathlib import Path

from lm.checkpoint.layout import write_json
from lm.data.loader import Loader
from lm.train.guard import Finding

FOLDER = "bad_batches"


def write(run: Path, finding: Finding, loader: Loader, position: int) -> Path:
    """Write ``RUN/bad_batches/STEP.json``: the rows of a step's batch by source and document.

    Args:
        run: the run's folder.
        finding: the step, and what is wrong with it.
        loader: the run's.
        position: sequences consumed before the step.

    Raises:
        OSError, CorpusError: it cannot be written, or the names of documents not be read.
    """
    numbers = loader.numbers(position).tolist()
    rows = [
        {
            "row": row,
            "sample": number,
            "source": origin.source,
            "epoch": origin.epoch,
            "window": origin.window,
            "documents": [
                {"id": name, "start": piece.start, "stop": piece.stop}
                for name, piece in zip(origin.names, origin.pieces, strict=True)
            ],
        }
        for row, (number, origin) in enumerate(zip(numbers, loader.origins(position), strict=True))
    ]
    path = run / FOLDER / f"{finding.step}.json"
    path.parent.mkdir(exist_ok=True)
    told = {"step": finding.step, "skipped": finding.skipped, "why": finding.why}
    write_json(path, told | {"rows": rows})
    return path
