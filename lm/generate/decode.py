"""Several prompts continued at once, each in a slot of the model's caches.

Two functions are compiled: one reads the prompts, the other adds tokens to every slot.  The
second runs up to a chunk of tokens in a loop on the device, and the next chunk is dispatched
before the host looks at the one before, so the device does not wait.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32, Key, Shaped

from lm.batch import LogitsFn, Params
from lm.errors import ConfigError
from lm.generate.sampling import Sampler, sample
from lm.models.model import Caches, Decoding, Model

SLOTS = 32
"""Sequences decoded at once; more prompts than that are taken in turn."""
CHUNK = 8
"""Tokens a slot between two looks of the host."""
PADDED_TO = 128
"""Caches have a multiple of so many positions, so that few shapes are compiled."""

StoppedBy = Literal["eos", "stop", "length", "context"]
OnToken = Callable[[int, int], bool]
"""Hears of each token (number of the prompt, id) in order; True ends that sequence with it."""


class Bounds(NamedTuple):
    """What may be generated at all."""

    vocab_size: int
    """Ids from here on are padding of the model's table, and never drawn."""
    eos: int | None = None
    """Ends a sequence."""
    banned: tuple[int, ...] = ()
    """Ids that are never drawn."""
    context: int | None = None
    """Positions that the model has; None: no end."""


class Generated(NamedTuple):
    """The continuation of one prompt."""

    ids: list[int]
    """The new ids, EOS not among them."""
    stopped_by: StoppedBy
    """EOS, the listener, ``max_tokens``, or the last position of the model."""


def generate(
    model: Model,
    params: Params,
    bounds: Bounds,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    sampler: Sampler,
    seed: int = 0,
    on_token: OnToken | None = None,
) -> list[Generated]:
    """Continue prompts of any lengths.

    The random choices of a sequence depend on the seed, its number among the prompts and the
    number of the token: not on the other prompts.

    Args:
        model: a model that decodes.
        params: its parameters, on one device or split as its placement says.
        bounds: which ids and how many positions there are.
        prompts: ids, each beginning with BOS if the model was trained so.
        max_tokens: new tokens for each prompt at most.
        sampler: how tokens are drawn.
        seed: 0 up to 2**32 - 1.
        on_token: streaming, and a way to end a sequence.

    Returns:
        A continuation for each prompt, in order.

    Raises:
        ConfigError: a prompt that is empty or longer than the context, or a value out of range.
    """
    if model.decoding is None:
        raise ConfigError("this model does not generate: it has no decoder.")
    _check(bounds, prompts, max_tokens, seed)
    if not prompts:
        return []
    plan = _Plan(model.decoding, model.logits, sampler)
    rooms = [_room(bounds, len(prompt), max_tokens) for prompt in prompts]
    needed = max(len(p) + room - 1 for p, room in zip(prompts, rooms, strict=True))
    positions = -(-needed // PADDED_TO) * PADDED_TO
    positions = min(positions, bounds.context or positions)
    width = min(1 << (max(len(p) for p in prompts) - 1).bit_length(), positions)
    slots = min(len(prompts), SLOTS)
    sequences = [_Sequence(number, room) for number, room in enumerate(rooms)]
    for first in range(0, len(prompts), slots):
        part = slice(first, first + slots)
        wanted = _wanted(bounds, rooms[part], slots)
        group = _padded(prompts[part], first, slots, width)
        blocks = _blocks(plan, params, wanted, group, seed, positions)
        _follow(sequences[part], blocks, bounds.eos, on_token)
    return [sequence.result(max_tokens) for sequence in sequences]


class _Plan(NamedTuple):
    """What the compiled functions are made for; hashable."""

    decoding: Decoding
    logits: Callable[[Params], LogitsFn]
    sampler: Sampler

    def draw(
        self, params: Params, hidden: Array, keys: Array, number: Array, wanted: "_Wanted"
    ) -> tuple[Array, Array]:
        """The next id of every slot, and which slots need no further one."""
        scores = self.logits(params)(hidden)
        ids_V = jnp.arange(scores.shape[-1])
        allowed_V = (ids_V < wanted.vocab_size) & ~jnp.isin(ids_V, wanted.banned)
        scores = jnp.where(allowed_V[None, :], scores, -jnp.inf)
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)
        ids = sample(scores, keys, self.sampler)
        return ids, (number >= wanted.rooms) | (ids == wanted.eos)


class _Wanted(NamedTuple):
    """What is asked for; arrays, so that other requests need no other code."""

    rooms: Shaped[Any, " S"]
    """New tokens at most; 0 for slots without a prompt."""
    vocab_size: Shaped[Any, ""]
    banned: Shaped[Any, " n"]
    eos: Shaped[Any, ""]
    """-1: none."""


class _Prompts(NamedTuple):
    """A group of prompts, padded on the right."""

    ids: Shaped[Any, "S T"]
    lengths: Shaped[Any, " S"]
    numbers: Shaped[Any, " S"]
    """Each one's number in the request."""


class _State(NamedTuple):
    """Every slot between two tokens; lives on the device."""

    caches: Caches
    ids: Int32[Array, " S"]
    """The newest token, which the model has not read."""
    positions: Int32[Array, " S"]
    """Where it stands; in a slot that has ended, where the last token read stands."""
    ended: Bool[Array, " S"]
    keys: Key[Array, " S"]
    number: Int32[Array, ""]
    """New tokens so far."""


class _Sequence:
    """What the host knows of a sequence."""

    def __init__(self, number: int, room: int) -> None:
        self.number, self.room = number, room
        self.ids: list[int] = []
        self.stopped_by: StoppedBy | None = None

    def take(self, token: int, eos: int | None, on_token: OnToken | None) -> None:
        """Add a token, unless the sequence has ended."""
        if self.stopped_by or token < 0:
            return
        if token == eos:
            self.stopped_by = "eos"
            return
        self.ids.append(token)
        if on_token is not None and on_token(self.number, token):
            self.stopped_by = "stop"
        elif len(self.ids) == self.room:
            self.stopped_by = "length"

    def result(self, max_tokens: int) -> Generated:
        """What became of the sequence."""
        if self.stopped_by == "length" and self.room < max_tokens:
            return Generated(self.ids, "context")
        return Generated(self.ids, self.stopped_by or "length")


def _follow(
    sequences: Sequence[_Sequence],
    blocks: Iterator[np.ndarray],
    eos: int | None,
    on_token: OnToken | None,
) -> None:
    """Give each sequence its tokens until all have ended."""
    for block in blocks:
        for row in block.tolist():
            for sequence, token in zip(sequences, row, strict=False):
                sequence.take(token, eos, on_token)
        if all(sequence.stopped_by for sequence in sequences):
            return


def _blocks(
    plan: _Plan, params: Params, wanted: _Wanted, prompts: _Prompts, seed: int, positions: int
) -> Iterator[np.ndarray]:
    """The new ids [tokens, S], block after block; -1 where the device stopped early."""
    wanted, prompts, start = jax.device_put((wanted, prompts, np.uint32(seed)))
    state, ahead = _start(plan, positions, params, wanted, prompts, start)
    while True:
        block = ahead
        state, ahead = _extend(plan, params, wanted, state)
        yield jax.device_get(block)


@partial(jax.jit, static_argnums=(0, 1))
def _start(
    plan: _Plan, positions: int, params: Params, wanted: _Wanted, prompts: _Prompts, seed: Array
) -> tuple[_State, Array]:
    """Read the prompts and draw the first token of each."""
    ids, lengths, numbers = prompts
    key = jax.random.key(seed)
    keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)
    blank = plan.decoding.empty(len(ids), positions)
    slots = jnp.arange(len(ids))
    caches, hidden = plan.decoding.prefill(params, blank, slots, ids, lengths)
    number = jnp.int32(1)
    ids, ended = plan.draw(params, hidden, keys, number, wanted)
    return _State(caches, ids, lengths - ended, ended, keys, number), ids[None]


@partial(jax.jit, static_argnums=0, donate_argnums=3)
def _extend(
    plan: _Plan, params: Params, wanted: _Wanted, state: _State
) -> tuple[_State, Int32[Array, "n S"]]:
    """Add a chunk of tokens to every slot; fewer where all have ended."""
    blank = jnp.full((CHUNK, len(state.ids)), -1, jnp.int32)

    def goes_on(carry: tuple[Array, _State, Array]) -> Array:
        done, state, _ = carry
        return (done < CHUNK) & ~state.ended.all()

    def body(carry: tuple[Array, _State, Array]) -> tuple[Array, _State, Array]:
        done, old, written = carry
        caches, hidden = plan.decoding.extend(params, old.caches, old.ids, old.positions)
        number = old.number + 1
        ids, now = plan.draw(params, hidden, old.keys, number, wanted)
        ended = old.ended | now
        state = _State(caches, ids, old.positions + ~ended, ended, old.keys, number)
        return done + 1, state, written.at[done].set(ids)

    _, state, written = jax.lax.while_loop(goes_on, body, (jnp.int32(0), state, blank))
    return state, written


def _wanted(bounds: Bounds, rooms: Sequence[int], slots: int) -> _Wanted:
    room = np.zeros(slots, np.int32)
    room[: len(rooms)] = rooms
    eos = -1 if bounds.eos is None else bounds.eos
    banned = np.asarray(bounds.banned, np.int32)
    return _Wanted(room, np.int32(bounds.vocab_size), banned, np.int32(eos))


def _padded(prompts: Sequence[Sequence[int]], first: int, slots: int, width: int) -> _Prompts:
    ids, lengths = np.zeros((slots, width), np.int32), np.ones(slots, np.int32)
    for slot, prompt in enumerate(prompts):
        ids[slot, : len(prompt)] = prompt
        lengths[slot] = len(prompt)
    return _Prompts(ids, lengths, np.arange(first, first + slots, dtype=np.uint32))


def _room(bounds: Bounds, length: int, max_tokens: int) -> int:
    """New tokens that fit; the last of them is never read, so it needs no position."""
    if bounds.context is None:
        return max_tokens
    return min(max_tokens, bounds.context - length + 1)


def _check(bounds: Bounds, prompts: Sequence[Sequence[int]], max_tokens: int, seed: int) -> None:
    if max_tokens < 1:
        raise ConfigError(f"max_tokens {max_tokens}: ask for at least 1 token.")
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed {seed}: use 0 to {2**32 - 1}.")
    for number, prompt in enumerate(prompts, start=1):
        if not prompt:
            raise ConfigError(f"prompt {number} is empty. Begin it with BOS at least.")
        if bounds.context is not None and len(prompt) > bounds.context:
            raise ConfigError(
                f"prompt {number} has {len(prompt):,} tokens, and the model has "
                f"{bounds.context:,} positions. Shorten it by {len(prompt) - bounds.context:,} "
                "tokens or more."
            )
        beyond = [i for i in prompt if not 0 <= i < bounds.vocab_size]
        if beyond:
            raise ConfigError(
                f"prompt {number} has the id {beyond[0]}; ids run from 0 to "
                f"{bounds.vocab_size - 1}. Encode it with the model's own tokenizer."
            )
