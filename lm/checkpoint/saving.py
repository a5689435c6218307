"""When a run is saved and which of its checkpoints are kept."""

from dataclasses import dataclass

from lm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Saving:
    """How often to save, and what to keep; may change at any resume."""

    every: int = 1000
    """Steps from one save to the next; the last step is always saved."""
    keep: int = 3
    """How many of the newest checkpoints stay."""
    keep_every: int | None = None
    """Checkpoints whose step is a multiple of this stay for good; None: none of them."""

    def __post_init__(self):
        for name, value in (("every", self.every), ("keep", self.keep)):
            if value < 1:
                raise ConfigError(f"saving.{name} is {value}; it must be 1 or more.")
        if self.keep_every is not None and self.keep_every < 1:
            raise ConfigError(
                f"saving.keep_every is {self.keep_every}; it must be 1 or more, or None."
            )

    def retired(self, steps: list[int]) -> list[int]:
        """Those of the whole ``steps`` that need not stay; never the newest."""
        kept = set(sorted(steps)[-self.keep :])
        if self.keep_every is not None:
            kept |= {step for step in steps if step % self.keep_every == 0}
        return [step for step in sorted(steps) if step not in kept]
