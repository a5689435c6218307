"""Parquet files, where pyarrow is installed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm.errors import CorpusError

try:
    import pyarrow  # pyright: ignore[reportMissingImports, reportMissingTypeStubs]
    import pyarrow.parquet  # pyright: ignore[reportMissingImports, reportMissingTypeStubs, reportUnusedImport]
except ImportError:
    pyarrow = None

library: Any = pyarrow


def read_rows(path: Path, field: str) -> Iterator[dict[str, Any]]:
    """The rows of a file as mappings with ``field`` and, where there is one, ``id``.

    Raises:
        CorpusError: pyarrow is missing, the file is damaged, or it has no such column.
    """
    if library is None:
        raise CorpusError(
            f"{path}: reading Parquet needs pyarrow, which is not installed. "
            "Install the extra 'parquet': pip install -e '.[parquet]'"
        )
    try:
        file = library.parquet.ParquetFile(path)
        names = list(file.schema_arrow.names)
        if field not in names:
            raise CorpusError(
                f"{path}: no column {field!r}; it has {', '.join(names)}. "
                "Say which one holds the text with --field."
            )
        columns = [field] + (["id"] if "id" in names and field != "id" else [])
        for batch in file.iter_batches(batch_size=1024, columns=columns):
            yield from batch.to_pylist()
    except (OSError, library.ArrowException) as error:
        raise CorpusError(f"{path}: damaged or not Parquet ({error}). Copy it again.") from error
