"""TensorBoard event files, through tensorboardX."""

from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

from lm.errors import ResourceError


class TensorBoard:
    """A tracker that writes a scalar for each number."""

    def __init__(self, folder: Path, *, restored_step: int = 0):
        """Go on in ``folder``; TensorBoard hides what was written beyond ``restored_step``.

        Raises:
            ResourceError: the folder cannot be written.
        """
        earlier = folder.exists()
        try:
            self.writer = SummaryWriter(
                str(folder),
                purge_step=restored_step + 1 if earlier else None,
                filename_suffix=f".{restored_step}",  # two starts in one second share a name
            )
        except OSError as error:
            raise ResourceError(
                f"{folder}: cannot be written ({error.strerror or error}). Free some disk, choose "
                "another folder with --runs, or set tracking.tensorboard to False."
            ) from error

    def __call__(self, step: int, metrics: Mapping[str, int | float | None]) -> None:
        """Write each number that there is."""
        for name, value in metrics.items():
            if value is not None:
                self.writer.add_scalar(name, float(value), step)

    def flush(self) -> None:
        """Hand what is queued to the operating system."""
        self.writer.flush()

    def close(self) -> None:
        """Write what is queued and close the file."""
        self.writer.close()
