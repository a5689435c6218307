"""Folders that are there whole or not at all."""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Generator
from pathlib import Path

from lm.errors import CorpusError, ResourceError


@contextlib.contextmanager
def written_whole(folder: Path) -> Generator[Path]:
    """A temporary folder that takes the name ``folder`` when the block has ended well.

    Raises:
        CorpusError: ``folder`` already holds something, or cannot be written.
        ResourceError: the disk is full.
    """
    refuse_used(folder)
    temporary = folder.with_name(f"{folder.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if folder.is_dir():
            folder.rmdir()
        os.rename(temporary, folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                f"{folder}: the disk is full ({_free(folder)}). Nothing was kept; make room or "
                "choose a folder on another disk."
            ) from error
        raise CorpusError(
            f"{folder}: cannot be written ({error.strerror or error}). Choose a folder that you "
            "may write to."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_used(folder: Path) -> None:
    """Raise a CorpusError where a folder already holds something."""
    try:
        used = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:
        raise CorpusError(f"{folder}: cannot be read ({error.strerror}).") from error
    if used:
        raise CorpusError(
            f"{folder}: already there and not empty. Choose another folder, or delete it first."
        )


def _free(folder: Path) -> str:
    with contextlib.suppress(OSError):
        return f"{shutil.disk_usage(folder.parent).free / 1e6:,.0f} MB free"
    return "no space left"
