"""Tracing some steps of a training with JAX's profiler."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax


class Trace:
    """Called before each step: traces some of them with JAX's profiler."""

    def __init__(self, folder: Path, steps: tuple[int, int], say: Callable[[str], None]) -> None:
        self.folder, self.steps, self.say = folder, steps, say
        self.on = False

    def __call__(self, step: int, state: Any) -> None:
        """Step ``step`` comes next; ``state`` is that of the step before, perhaps in flight."""
        first, last = self.steps
        if step == first and not self.on:  # a run may go back and come again
            jax.block_until_ready(state)
            jax.profiler.start_trace(self.folder)
            self.on = True
        elif self.on and step > last:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            self.on = False
            self.say(f"profile    steps {first:,} to {last:,} in {self.folder}")
