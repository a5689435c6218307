"""The contract of an evaluator: parameters in, figures out."""

from collections.abc import Callable
from typing import NamedTuple

from lm.batch import Params
from lm.data.shards import Shards
from lm.tokenizers.tokenizer import Tokenizer
from lm.train.placed import Placed

Figures = dict[str, int | float]
"""Named results; counts are whole numbers."""
Evaluator = Callable[[Params], Figures]
"""Compiled once; called with parameters placed as the model's."""


class Context(NamedTuple):
    """What evaluators may need of a run."""

    placed: Placed
    tokenizer: Tokenizer | None
    """None: the data's own word is taken for its ids."""
    rows: int
    """Rows of a batch; a multiple of the devices that split them."""
    length: int
    """Tokens a row."""
    held_out: Shards | None = None
    """The run's own held-out set."""
    between: Callable[[], None] = lambda: None
    """Called after every batch, as often on every process; raises to give the evaluation up."""
