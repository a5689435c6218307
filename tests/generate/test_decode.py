"""Decoding with a cache is the full forward pass, whatever shares the batch."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from lm.errors import ConfigError
from lm.generate import decode
from lm.generate.decode import Bounds, generate
from lm.generate.sampling import GREEDY, Sampler
from tests.generate.conftest import LENGTH, VOCABULARY, Built

PROMPTS = [[256, 3, 7], [256], [256, *range(20)], [256, 9, 9, 9, 9]]
WARM = Sampler(temperature=1.5)
NextLogits = Callable[[Built, list[list[int]]], np.ndarray]


def run(built: Built, prompts: Any = PROMPTS, **changes: Any) -> Any:
    model, params, context = built
    options = {"max_tokens": 21, "sampler": GREEDY} | changes
    bounds = Bounds(VOCABULARY, options.pop("eos", None), options.pop("banned", ()), context)
    return generate(model, params, bounds, prompts, **options)


@pytest.mark.parametrize("family", ["gpt2", "llama", "window"])
def test_greedy_decoding_takes_the_argmax_of_the_full_forward_pass(
    family: str, models: dict[str, Built], next_logits: NextLogits
) -> None:
    built = models[family]
    results = run(built)
    for prompt, result in zip(PROMPTS, results, strict=True):
        assert result.stopped_by == "length"
        assert len(result.ids) == 21
        starts = [prompt + result.ids[:n] for n in range(21)]
        expected = next_logits(built, starts)[:, :VOCABULARY].argmax(-1)
        assert result.ids == expected.tolist()
    assert len({tuple(r.ids) for r in results}) == len(PROMPTS)


def test_a_window_changes_what_is_written(models: dict[str, Built]) -> None:
    assert run(models["window"]) != run(models["llama"])


def test_choices_depend_on_seed_and_number_not_on_the_other_prompts(
    models: dict[str, Built],
) -> None:
    base = run(models["llama"], sampler=WARM, seed=5)
    assert run(models["llama"], sampler=WARM, seed=5) == base
    assert run(models["llama"], sampler=WARM, seed=6) != base
    others = [PROMPTS[0], [256, 88], PROMPTS[2], PROMPTS[0]]
    found = run(models["llama"], others, sampler=WARM, seed=5)
    assert (found[0], found[2]) == (base[0], base[2])
    assert found[0] != found[3]


def test_each_token_is_drawn_anew(models: dict[str, Built]) -> None:
    """A model without a preference repeats no id more often than chance allows."""
    model, params, context = models["llama"]
    blank = jax.tree.map(lambda x: x * 0, params)
    for result in run((model, blank, context), sampler=WARM):
        assert len(set(result.ids)) > 15


def test_more_prompts_than_slots_are_taken_in_turn(
    models: dict[str, Built], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = run(models["llama"], sampler=WARM)
    heard: dict[int, list[int]] = {n: [] for n in range(4)}
    monkeypatch.setattr(decode, "SLOTS", 3)
    in_turn = run(
        models["llama"], sampler=WARM, on_token=lambda n, token: bool(heard[n].append(token))
    )
    assert in_turn == together
    assert [heard[n] for n in range(4)] == [r.ids for r in together]


def test_eos_and_listeners_end_a_sequence(models: dict[str, Built]) -> None:
    free = run(models["llama"])
    eos = free[0].ids[4]
    results = run(models["llama"], eos=eos)
    for before, after in zip(free, results, strict=True):
        if eos in before.ids:
            assert after == (before.ids[: before.ids.index(eos)], "eos")
        else:
            assert after == before
    heard: list[int] = []

    def third(number: int, token: int) -> bool:
        heard.append(number)
        return number == 2 and heard.count(2) == 3

    stopped = run(models["llama"], on_token=third)
    assert stopped[2] == (free[2].ids[:3], "stop")
    assert heard.count(2) == 3
    assert [stopped[i] for i in (0, 1, 3)] == [free[i] for i in (0, 1, 3)]


def test_learned_positions_end_a_sequence_after_the_last_one(
    models: dict[str, Built], next_logits: NextLogits
) -> None:
    """The last position is read, and what it predicts is the last token."""
    built = models["gpt2"]
    prompts = [[256] * LENGTH, [256, 5], [256] * (LENGTH - 9), [256]]
    results = run(built, prompts, max_tokens=30)
    assert [(len(r.ids), r.stopped_by) for r in results] == [
        (1, "context"),
        (30, "length"),
        (10, "context"),
        (30, "length"),
    ]
    for prompt, result in zip(prompts, results, strict=True):
        expected = next_logits(built, [prompt + result.ids[:-1]])[0, :VOCABULARY].argmax()
        assert result.ids[-1] == expected


def test_padding_of_the_vocabulary_and_banned_ids_are_never_drawn(
    models: dict[str, Built],
) -> None:
    """A table whose padding would win every time still writes ids of the tokenizer."""
    model, params, context = models["llama"]
    w = params["unembedding"]["w"]
    loud = np.where(np.arange(320) < VOCABULARY - 2, 0.0, 100.0)
    loud = np.where(np.arange(320) < VOCABULARY, loud, 200.0) * (-1.0) ** np.arange(320)
    # Whichever way the hidden state points, half of the ids that do not count score highest.
    padded = {**params, "unembedding": {"w": w + loud[None, :] * w[:, :1]}}
    results = run((model, padded, context), sampler=WARM, banned=(257, 258))
    ids = [i for r in results for i in r.ids]
    assert len(set(ids)) > 10
    assert max(ids) < VOCABULARY - 2
    results = generate(model, padded, Bounds(320), PROMPTS, max_tokens=21, sampler=GREEDY)
    assert min(i for r in results for i in r.ids) >= VOCABULARY


def test_a_second_request_compiles_nothing(models: dict[str, Built]) -> None:
    run(models["llama"], max_tokens=20)
    before = decode._start._cache_size(), decode._extend._cache_size()
    run(models["llama"], [[256, *range(30)], [256], [256, 1], [256]], max_tokens=50, seed=9)
    assert (decode._start._cache_size(), decode._extend._cache_size()) == before


def test_parameters_split_over_devices_write_the_same(models: dict[str, Built]) -> None:
    model, params, context = models["llama"]
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.device_put(
        params,
        jax.tree.map(lambda x: jax.NamedSharding(mesh, jax.P(*[None] * (x.ndim - 1), "x")), params),
    )
    assert run((model, split, context)) == run(models["llama"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": [[256], [256] * (LENGTH + 2)]}, "prompt 2 has 50 tokens.*48 positions.*by 2"),
        ({"prompts": [[]]}, "prompt 1 is empty"),
        ({"prompts": [[256, 300]]}, "id 300; ids run from 0 to 258"),
        ({"max_tokens": 0}, "max_tokens 0"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(
    changes: dict[str, Any], message: str, models: dict[str, Built]
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(models["gpt2"], **changes)


def test_no_prompts_give_no_texts(models: dict[str, Built]) -> None:
    assert run(models["gpt2"], []) == []
