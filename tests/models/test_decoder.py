"""Who can influence whom, by gradients; and that neither kernels nor caches change anything."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.batch import Batch, Tokens
from lm.errors import ConfigError
from lm.layers.attention import Attention
from lm.layers.block import Block
from lm.layers.execution import Execution
from lm.layers.mlp import GatedMlp, Mlp
from lm.layers.norm import LayerNorm, RmsNorm
from lm.layers.position import LlamaScaling, Rope
from lm.layers.stack import Stack
from lm.models.decoder import Decoder, Untied, windowed
from lm.models.gpt2 import gpt2
from lm.models.llama import llama
from lm.objectives.causal import CausalLm
from lm.ops.attention import xla as attention

B, T, V = 2, 24, 64
LLAMA = llama(V, width=16, blocks=2, num_heads=4, num_kv_heads=2, mlp=24)
GPT2 = gpt2(V, width=16, blocks=2, num_heads=4, length=T)
WINDOWED = windowed(LLAMA, 4)
EVERYTHING = Decoder(
    vocab_size=V,
    width=16,
    stacks=(
        Stack(
            blocks=(
                Block(
                    mixer=Attention(
                        num_heads=4, num_kv_heads=1, head_width=8, window=5, soft_cap=3.0,
                        qk_norm=RmsNorm(), position=Rope(scaling=LlamaScaling(original_length=8)),
                    ),
                    mlp=GatedMlp(hidden=24, activation="gelu", bias=True),
                    post_norm=RmsNorm(),
                ),
                Block(
                    mixer=Attention(num_heads=2, num_kv_heads=2, head_width=4, qkv_bias=True),
                    mlp=Mlp(hidden=20, activation="relu_squared"),
                    pre_norm=LayerNorm(),
                    residual="parallel",
                ),
            ),
            repeats=2,
        ),
        Stack(blocks=(Block(mixer=Attention(num_heads=2, num_kv_heads=1, head_width=8),
                            mlp=Mlp(hidden=16)),), repeats=1),
    ),
    unembedding=Untied(),
    logit_soft_cap=20.0,
)  # fmt: skip
"""Every part there is, in two stacks."""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 10)


def build(config: Decoder, execution: Execution = Execution()):  # noqa: B008
    """The model and weights so large that nothing comes out near zero."""
    model = config.build(execution)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(0)

    def draw(leaf, shape):
        spread = 1.0 if leaf.kind in ("table", "position") else 1.5 / np.sqrt(leaf.fan_in)
        base = 1.0 if leaf.kind == "norm" else 0.0
        spread = 0.2 if leaf.kind in ("norm", "bias") else spread
        return jnp.asarray(base + spread * rng.normal(size=shape.shape), jnp.float32)

    return model, jax.tree.map(draw, model.leaves, shapes)


def batch() -> Batch:
    """Two rows of packed documents; within all of them no id comes twice."""
    ids = np.random.default_rng(1).permutation(V)[: B * T].reshape(B, T).astype(np.int32)
    segments, positions = np.ones((2, B, T), np.int32)
    for row, cuts in enumerate([(0, 9, T), (0, 2, 17, T)]):
        for i, (start, stop) in enumerate(zip(cuts[:-1], cuts[1:], strict=True)):  # noqa: RUF007
            segments[row, start:stop], positions[row, start:stop] = i + 1, np.arange(stop - start)
    weights = np.random.default_rng(2).random((B, T)).astype(np.float32)
    targets = np.roll(ids, -1, 1)
    rows = np.arange(B, dtype=np.int32)
    return jax.tree.map(
        jnp.asarray, Batch(Tokens(ids, segments, positions), targets, weights, rows)
    )


def influence(config: Decoder, execution: Execution) -> np.ndarray:
    """[token, token]: whether the first's output moves at all when the second's embedding does.

    Ids are distinct, so the gradient in row ``id`` of the token table is that token's own.
    """
    model, params = build(config, execution)
    given = batch()
    probe = jnp.asarray(np.random.default_rng(4).normal(size=config.width), jnp.float32)

    @jax.jit
    def jacobian(table):
        def outputs(table):
            changed = {**params, "embedding": {"table": table}}
            return (model.apply(changed, given, None).hidden @ probe).reshape(-1)

        _, pull = jax.vjp(outputs, table)
        return jax.lax.map(lambda one: pull(one)[0], jnp.eye(B * T))

    found = np.asarray(jacobian(params["embedding"]["table"]))[:, given.inputs.ids.reshape(-1)]
    return np.abs(found).max(-1) > 0


def reachable(config: Decoder) -> np.ndarray:
    """What influence may be: through each block, one step of "sees"."""
    tokens = batch().inputs
    segment, position = np.asarray(tokens.segments), np.asarray(tokens.positions)
    row = np.repeat(np.arange(B), T)
    segment, position = segment.reshape(-1), position.reshape(-1)
    same = (row[:, None] == row) & (segment[:, None] == segment)
    back = position[:, None] - position
    reach = np.eye(B * T, dtype=bool)
    for block in config.blocks:
        sees = same & (back >= 0) & (back < (block.mixer.window or T))
        reach = (sees.astype(int) @ reach) > 0
    return reach


@pytest.mark.parametrize(
    ("config", "execution"),
    [
        (LLAMA, Execution(attention_kernel="whole")),
        (GPT2, Execution(attention_kernel="blocked")),
        (WINDOWED, Execution(attention_kernel="blocked", scan="scan", remat="block")),
        (WINDOWED, Execution(attention_kernel="whole")),
        (EVERYTHING, Execution(attention_kernel="blocked", scan="scan")),
    ],
    ids=["llama", "gpt2", "windowed-blocked", "windowed-whole", "everything"],
)
def test_a_token_is_moved_by_what_it_may_see_and_by_nothing_else(config, execution):
    """Causality, documents and windows at once: gradients are exactly zero elsewhere, and only."""
    np.testing.assert_array_equal(influence(config, execution), reachable(config))


def loss_and_gradients(config: Decoder, execution: Execution, key=None):
    model, params = build(config, execution)
    given, objective = batch(), CausalLm(z_loss=1e-2)

    def total(params):
        return objective.loss(model.logits(params), model.apply(params, given, key), given).total

    loss, found = jax.jit(jax.value_and_grad(total))(params)
    return float(loss), jax.device_get(found)


WAYS = {
    "gpt2 with dropout": Execution(remat="block", scan="unroll", attention_kernel="blocked"),
    "everything": Execution(remat="projections", scan="scan", attention_kernel="blocked"),
}
PLAIN = Execution(attention_kernel="whole", scan="scan")
DROPPING = replace(
    gpt2(V, width=16, blocks=2, num_heads=4, length=T, dropout=0.2), embedding_dropout=0.1
)
COMPARED = {"gpt2 with dropout": DROPPING, "everything": EVERYTHING}


@pytest.mark.parametrize("name", COMPARED)
def test_kernels_loops_and_recomputation_change_no_gradient(name):
    key = jax.random.key(7)
    loss, expected = loss_and_gradients(COMPARED[name], PLAIN, key)
    got_loss, got = loss_and_gradients(COMPARED[name], WAYS[name], key)
    assert got_loss == pytest.approx(loss, rel=1e-6)
    largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(expected))
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(got), strict=True
    ):
        # A key's bias has no gradient but rounding: softmax does not see a shift.
        size = np.abs(a).max() if np.abs(a).max() > 1e-5 * largest else largest
        where = jax.tree_util.keystr(path)
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * size, err_msg=where)


def test_rows_that_change_places_keep_their_loss_with_dropout():
    """What a row loses to dropout goes with its number, in whatever order or piece it comes."""
    model, params = build(DROPPING)
    given = batch()

    @jax.jit
    def hidden(batch):
        return model.apply(params, batch, jax.random.key(7)).hidden

    swapped = jax.tree.map(lambda x: x[::-1], given)
    np.testing.assert_allclose(hidden(swapped)[::-1], hidden(given), rtol=1e-5, atol=1e-5)
    renumbered = given._replace(rows=given.rows[::-1])
    assert float(jnp.abs(hidden(renumbered) - hidden(given)).max()) > 0.1


@pytest.mark.parametrize("config", [GPT2, EVERYTHING], ids=["gpt2", "everything"])
def test_prefill_and_extend_give_what_the_full_forward_pass_gives(config):
    """Two sequences of different length in slots 2 and 0 of 3, grown token by token."""
    model, params = build(config)
    ids = jnp.asarray(np.random.default_rng(5).integers(0, V, (2, T)), jnp.int32)
    at = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (2, T))
    whole = Batch(Tokens(ids, jnp.ones_like(at), at), ids, jnp.ones((2, T)), jnp.arange(2))
    full = np.asarray(jax.jit(lambda b: model.apply(params, b, None).hidden)(whole))
    decoding, slots = model.decoding, jnp.asarray([2, 0], jnp.int32)
    assert decoding is not None
    lengths = np.asarray([7, 3], np.int32)
    # Junk beyond a prompt's end must never be seen.
    padded = jnp.where(at[:, :8] < lengths[:, None], ids[:, :8], 1)
    caches = decoding.empty(3, T)
    caches, last = jax.jit(decoding.prefill)(params, caches, slots, padded, jnp.asarray(lengths))
    np.testing.assert_allclose(last, full[[0, 1], lengths - 1], rtol=1e-4, atol=2e-5)
    extend = jax.jit(decoding.extend)
    for _ in range(5):
        fed, places = np.zeros(3, np.int32), np.zeros(3, np.int32)
        fed[[2, 0]], places[[2, 0]] = ids[np.arange(2), lengths], lengths
        caches, hidden = extend(params, caches, jnp.asarray(fed), jnp.asarray(places))
        found = np.asarray(hidden)[[2, 0]]
        np.testing.assert_allclose(found, full[[0, 1], lengths], rtol=1e-4, atol=2e-5)
        lengths = lengths + 1
    for leaf in jax.tree.leaves(decoding.evict(caches, slots)):
        assert not np.asarray(leaf)[:, [0, 2]].any()


def test_logits_are_capped_and_of_any_leading_shape():
    model, params = build(EVERYTHING)
    hidden = 50 * jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 16)), jnp.float32)
    logits = model.logits(params)
    assert logits(hidden).shape == (3, 4, V)
    assert 19 < float(jnp.abs(logits(hidden)).max()) <= 20
    np.testing.assert_allclose(logits(hidden[1, 2]), logits(hidden)[1, 2], rtol=1e-5)


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_a_new_model_knows_nothing(config):
    """Its loss is that of guessing, ln V, and what its logits of deviation up to 1 add: 1/2."""
    model = config.build(Execution())
    params = jax.jit(model.init)(jax.random.key(0))
    ids = np.random.default_rng(0).integers(0, V, (16 * B, T)).astype(np.int32)
    at = np.broadcast_to(np.arange(T, dtype=np.int32), ids.shape)
    ones = np.ones_like(ids)
    given = jax.tree.map(jnp.asarray, Batch(Tokens(ids, ones, at), np.roll(ids, 7, 0),
                                            ones.astype(np.float32), ids[:, 0]))  # fmt: skip

    @jax.jit
    def mean_loss(params):
        output = model.apply(params, given, None)
        return CausalLm().loss(model.logits(params), output, given).total / ids.size

    loss = float(mean_loss(params))
    assert np.log(V) - 0.1 < loss < np.log(V) + 0.7


def test_parameters_do_not_depend_on_how_they_will_be_used():
    draw = lambda e: jax.jit(LLAMA.build(e).init)(jax.random.key(1))  # noqa: E731
    one, other = draw(Execution()), draw(Execution(scan="scan", compute_dtype="bfloat16"))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert {x.dtype for x in jax.tree.leaves(one)} == {jnp.dtype("float32")}


def test_sizes_that_make_no_model_are_refused():
    with pytest.raises(ConfigError, match="vocab_size 0"):
        replace(LLAMA, vocab_size=0)
    with pytest.raises(ConfigError, match="0 blocks repeated 1 times"):
        Stack(blocks=(), repeats=1)
