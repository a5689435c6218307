"""Every kernel against attention spelled out in numpy, float64, loops over query and key."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.ops.attention import attend as door
from lm.ops.attention import cudnn, splash, streamed, xla
from lm.ops.attention.attend import Target, attend
from lm.ops.attention.pattern import ATTENTION, Pattern, Where

B, T, H = 2, 29, 8
CASES = {
    "causal": ((4, 4), Pattern()),
    "grouped": ((4, 2), Pattern()),
    "one key head": ((4, 1), Pattern(scale=0.3)),
    "window": ((4, 2), Pattern(window=5)),
    "window of one": ((2, 2), Pattern(window=1)),
    "window beyond a block": ((2, 1), Pattern(window=11)),
    "soft cap": ((4, 2), Pattern(soft_cap=1.5)),
    "both ways": ((4, 2), Pattern(causal=False)),
    "both ways, window": ((2, 2), Pattern(causal=False, window=3)),
}
INTERPRETED = Target("splash", interpret=True)
LENGTH = 256
"""Two blocks of splash."""
SPLASH = {
    "grouped, scaled": ((4, 2), Pattern(scale=0.3)),
    "window beyond a block": ((2, 1), Pattern(window=140)),
    "soft cap, window": ((1, 1), Pattern(soft_cap=1.5, window=40)),
    "both ways, window": ((1, 1), Pattern(causal=False, window=30)),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """29 queries are two blocks of 10 and a rest, or four of 8 over five of 6 keys."""
    monkeypatch.setattr(xla, "BLOCK", 10)
    monkeypatch.setattr(streamed, "QUERIES", 8)
    monkeypatch.setattr(streamed, "KEYS", 6)
    monkeypatch.setattr(splash, "RESIDENT", 128)
    monkeypatch.setattr(splash, "STREAMED", 128)
    splash._kernel.cache_clear()
    yield
    splash._kernel.cache_clear()


@pytest.fixture
def long_rows(monkeypatch):
    """Stream however few tokens."""
    monkeypatch.setattr(door, "LONG", 0)


def packed(cuts: list[list[int]], length: int = T) -> Where:
    """Rows whose documents begin at 0 and at ``cuts``; a cut below 0 begins padding."""
    segments, positions = np.zeros((2, len(cuts), length), np.int32)
    for row, starts in enumerate(cuts):
        edges = [0, *(abs(c) for c in starts), length]
        for i, (start, stop) in enumerate(itertools.pairwise(edges)):
            padding = i > 0 and starts[i - 1] < 0
            segments[row, start:stop] = 0 if padding else i + 1
            positions[row, start:stop] = np.arange(stop - start)
    return Where(jnp.asarray(segments), jnp.asarray(positions))


def seen(query: Where, key: Where, pattern: Pattern) -> np.ndarray:
    query, key = (Where(*map(np.asarray, where)) for where in (query, key))
    found = np.zeros((*query.segments.shape, key.segments.shape[1]), bool)
    for b in range(found.shape[0]):
        theirs = list(zip(key.segments[b].tolist(), key.positions[b].tolist(), strict=True))
        own = zip(query.segments[b].tolist(), query.positions[b].tolist(), strict=True)
        for t, (segment, position) in enumerate(own):
            for s, (other, before) in enumerate(theirs):
                found[b, t, s] = (
                    segment == other
                    and (position >= before or not pattern.causal)
                    and (pattern.window is None or abs(position - before) < pattern.window)
                )
    return found


def reference(q, k, v, d_out, mask, pattern):
    """Attention and its three gradients, by hand, one head at a time."""
    q, k, v, d_out = (np.asarray(x, np.float64) for x in (q, k, v, d_out))
    scale = pattern.scale or q.shape[-1] ** -0.5
    out, dq, dk, dv = (np.zeros_like(x) for x in (q, q, k, v))
    for b, n in np.ndindex(q.shape[0], q.shape[2]):
        at = n // (q.shape[2] // k.shape[2])
        raw = scale * q[b, :, n] @ k[b, :, at].T
        capped = raw if pattern.soft_cap is None else pattern.soft_cap * np.tanh(
            raw / pattern.soft_cap
        )  # fmt: skip
        slope = 1.0 if pattern.soft_cap is None else 1 - (capped / pattern.soft_cap) ** 2
        powers = np.where(mask[b], np.exp(capped - capped.max(-1, keepdims=True)), 0)
        p = powers / powers.sum(-1, keepdims=True)
        out[b, :, n] = p @ v[b, :, at]
        dp = d_out[b, :, n] @ v[b, :, at].T
        ds = p * (dp - (dp * p).sum(-1, keepdims=True)) * slope * scale
        dq[b, :, n] = ds @ k[b, :, at]
        dk[b, :, at] += ds.T @ q[b, :, n]
        dv[b, :, at] += p.T @ d_out[b, :, n]
    return out, dq, dk, dv


def draw(heads, length=T, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(B, length, n, H) for n in (heads[0], heads[1], heads[1], heads[0])]
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def equals_the_definition(heads, pattern, kernel, where):
    q, k, v, d_out = draw(heads, where.segments.shape[1])

    @jax.jit
    def found(q, k, v):
        out, pull = jax.vjp(lambda *x: attend(*x, where, where, pattern, kernel), q, k, v)
        return out, *pull(d_out)

    expected = reference(q, k, v, d_out, seen(where, where, pattern), pattern)
    for got, want in zip(found(q, k, v), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=5e-6)


@pytest.mark.parametrize("kernel", ["whole", "blocked"])
@pytest.mark.parametrize("case", CASES)
def test_kernels_and_their_gradients_equal_the_definition(case, kernel):
    """Packed documents, one of them ending in padding; positions restart in each."""
    equals_the_definition(*CASES[case], kernel, packed([[3, 14], [10, -21]]))


@pytest.mark.parametrize(
    "case", ["grouped", "one key head", "window beyond a block", "soft cap", "both ways, window"]
)
def test_streamed_blocks_equal_the_definition(case, long_rows):
    equals_the_definition(*CASES[case], "blocked", packed([[3, 14], [10, -21]]))


@pytest.mark.parametrize("case", SPLASH)
def test_splash_equals_the_definition(case):
    """Index-causal, index-windowed and same segment is the mask of segment and position."""
    where = packed([[60, 130], [140, -200]], LENGTH)
    equals_the_definition(*SPLASH[case], INTERPRETED, where)


@pytest.mark.parametrize("case", ["grouped", "one key head", "window", "both ways"])
def test_what_cudnn_is_told_means_the_definition(case):
    """XLA computes here what cuDNN is asked to compute."""
    heads, pattern = CASES[case]
    (q, k, v, d_out), where = draw(heads), packed([[3, 14], [10, -21]])
    told = cudnn.arguments(where, where, pattern)
    out = jax.jit(partial(jax.nn.dot_product_attention, implementation="xla", **told))(q, k, v)
    want, *_ = reference(q, k, v, d_out, seen(where, where, pattern), pattern)
    np.testing.assert_allclose(out, want, rtol=1e-4, atol=5e-6)


@pytest.mark.parametrize("kernel", ["whole", "blocked"])
def test_the_order_in_which_keys_lie_does_not_matter(kernel):
    """Segment and position say who sees whom, never an index: a cache may lie in any order."""
    q, k, v, _ = draw((4, 2))
    where, pattern = packed([[5], [20]]), Pattern(window=6)
    order = np.random.default_rng(1).permutation(T)
    shuffled = Where(where.segments[:, order], where.positions[:, order])
    attention_of = jax.jit(attend, static_argnums=(5, 6))
    straight = attention_of(q, k, v, where, where, pattern, "whole")
    loose = pattern._replace(ordered=False)
    mixed = attention_of(q, k[:, order], v[:, order], where, shuffled, loose, kernel)
    np.testing.assert_allclose(mixed, straight, rtol=1e-4, atol=1e-6)


def test_streamed_blocks_find_keys_in_any_order(long_rows):
    test_the_order_in_which_keys_lie_does_not_matter("blocked")


@pytest.mark.parametrize("kernel", ["whole", "blocked"])
def test_bfloat16_comes_within_its_own_rounding(kernel):
    """Scores and softmax stay float32: the error is that of operands of eight bits."""
    exact = draw((4, 2))
    narrow = [x.astype(jnp.bfloat16) for x in exact]
    where, pattern = packed([[3, 14], [10]]), Pattern(window=9)
    got = jax.jit(attend, static_argnums=(5, 6))(*narrow[:3], where, where, pattern, kernel)
    assert got.dtype == jnp.bfloat16
    want, *_ = reference(*narrow, seen(where, where, pattern), pattern)
    np.testing.assert_allclose(np.asarray(got, np.float64), want, atol=2e-2)


def test_auto_blocks_long_rows_and_no_short_ones(monkeypatch):
    sizes = []
    kept = xla._weighted

    def watched(q, *rest):
        sizes.append(q.shape[3])
        return kept(q, *rest)

    monkeypatch.setattr(xla, "_weighted", watched)
    for length in (19, 29):
        q, k, v, _ = draw((2, 2), length)
        where = packed([[], []], length)
        jax.eval_shape(lambda *x, w=where: attend(*x, w, w, Pattern()), q, k, v)
    assert sizes == [19, 10, 10, 9]


def test_blocked_leaves_out_keys_that_no_query_of_a_block_sees(monkeypatch):
    keys = []
    kept = xla._weighted

    def watched(q, k, *rest):
        keys.append(k.shape[2])
        return kept(q, k, *rest)

    monkeypatch.setattr(xla, "_weighted", watched)
    q, k, v, _ = draw((2, 2))
    where = packed([[], []])
    for pattern in (Pattern(), Pattern(window=3)):
        jax.eval_shape(lambda *x, p=pattern: attend(*x, where, where, p, "blocked"), q, k, v)
    assert keys == [10, 20, 29, 10, 20, 19]


def test_streamed_blocks_visit_only_keys_that_may_be_seen():
    begins = jnp.arange(0, 32, 8)
    for pattern, first, last in (
        (Pattern(), [0, 0, 0, 0], [2, 3, 4, 6]),
        (Pattern(window=3), [0, 1, 2, 3], [2, 3, 4, 6]),
        (Pattern(causal=False, window=3), [0, 1, 2, 3], [2, 3, 5, 6]),
        (Pattern(causal=False), [0, 0, 0, 0], [6, 6, 6, 6]),
    ):
        found = streamed._bounds(begins, 8, 6, pattern, skip=True)
        assert [bound.tolist() for bound in found] == [first, last]


def test_streamed_blocks_keep_no_scores_for_the_backward_pass(long_rows):
    """What is kept grows with the row, not with its square."""
    q, k, v, _ = draw((2, 2), 240)
    where = packed([[], []], 240)

    def kept(q, k, v):
        return jax.vjp(lambda *x: attend(*x, where, where, Pattern(), "blocked"), q, k, v)[1]

    sizes = [x.size for x in jax.tree.leaves(jax.eval_shape(kept, q, k, v))]
    assert sizes.count(q.size) >= 4
    assert max(sizes) == q.size


def kernels_run(program, name):
    """How often a primitive runs in a traced program, inner programs included."""
    total = 0
    for equation in program.eqns:
        if equation.primitive.name == name:
            total += 1
            continue
        # jax 0.10 leaves a call behind whose every result was dropped; no compiler runs it.
        if equation.outvars:
            inner = jax.tree.leaves(list(equation.params.values()), is_leaf=is_program)
            total += sum(kernels_run(getattr(p, "jaxpr", p), name) for p in inner if is_program(p))
    return total


def is_program(x):
    return hasattr(x, "eqns") or hasattr(x, "jaxpr")


@pytest.mark.parametrize(
    ("kernel", "primitive", "backward"), [(INTERPRETED, "pallas_call", 2), ("blocked", "scan", 1)]
)
def test_a_policy_that_saves_attention_spares_the_forward_kernel(
    kernel, primitive, backward, long_rows
):
    q, k, v, _ = draw((1, 1), 128)
    where = packed([[], []], 128)

    def run_under(policy):
        def loss(q, k, v):
            return attend(q, k, v, where, where, Pattern(), kernel).sum()

        gradient = jax.grad(jax.checkpoint(loss, policy=policy), argnums=(0, 1, 2))
        return kernels_run(jax.make_jaxpr(gradient)(q, k, v).jaxpr, primitive)

    saved = jax.checkpoint_policies.save_only_these_names(ATTENTION)
    assert run_under(saved) == 1 + backward
    assert run_under(jax.checkpoint_policies.nothing_saveable) == 2 + backward
