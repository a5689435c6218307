"""Mistakes that the user can mend: the command line prints them as one paragraph and exits 2.

A message says where, what is wrong (with the values) and what to do.  Anything that is not a
``UserError`` is a bug of ours and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """What is wrong is in the user's hands; the message says how to mend it."""


class ConfigError(UserError):
    """A configuration that cannot mean anything: an unknown name, a value out of range."""


class CorpusError(UserError):
    """Text, shards or tokenizer files that are missing, damaged or do not fit together."""


class CheckpointError(UserError):
    """A run or checkpoint that is missing, damaged, or belongs to another model."""


class ShardingError(UserError):
    """A mesh or rule table that does not fit the devices or the arrays."""


class ConversionError(UserError):
    """Weights or parts that the other format cannot express."""


class ResourceError(UserError):
    """Not enough memory or disk; the message says how much is needed."""


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """``"Did you mean 'x'? "`` for the nearest choice, or nothing where none is near."""
    near = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}? " if near else ""
