"""What the trace tells: products and what is kept, by hand from the sizes."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from lm.layers.execution import Execution
from lm.ops.attention import splash
from lm.ops.attention.pattern import Pattern, Where
from lm.parallel.mesh import Mesh
from lm.plan.compiled import trace
from lm.plan.trace import dot_flops, residual_bytes
from lm.train.step import Training

ROWS, LENGTH, WIDTH = 2, 64, 32
STREAM = ROWS * LENGTH * WIDTH * 4
"""Bytes of one device's residual stream: sixteen rows over eight devices."""


def kept(question):
    traced = trace(question.program)
    places = [x.sharding for x in jax.tree.leaves((question.program.state, question.program.batch))]
    return residual_bytes(traced.jaxpr, question.program.placed.mesh, places)


@pytest.mark.parametrize("scan", ["scan", "unroll"])
def test_whole_block_remat_keeps_one_stream_a_layer(tools, scan):
    few, more = (
        kept(tools.ask(tools.experiment(blocks=n, execution=Execution(remat="block", scan=scan))))
        for n in (2, 4)
    )
    assert more - few == 2 * STREAM


def test_activations_grow_linearly_with_layers_and_remat_keeps_less(tools):
    def sized(remat, blocks):
        execution = Execution(remat=remat, scan="scan")
        return kept(tools.ask(tools.experiment(blocks=blocks, execution=execution)))

    two, three, five = (sized("nothing", n) for n in (2, 3, 5))
    assert five - three == 2 * (three - two) > 0
    assert sized("projections", 2) < two


def test_microbatches_divide_what_is_kept(tools):
    def sized(microbatches, sequences):
        training = Training(steps=1, sequences=sequences, length=LENGTH, microbatches=microbatches)
        return kept(tools.ask(tools.experiment(training=training)))

    assert sized(2, 16) == sized(1, 8)


def test_products_of_the_traced_step_are_those_of_the_models_formula(tools):
    """Whole scores count full attention; nothing is recomputed, on any mesh and in any loop."""
    e = tools.experiment(execution=Execution(scan="scan", attention_kernel="whole"))
    wanted = tools.ask(e).flops.full * e.training.tokens_per_step
    many = replace(e.training, microbatches=2)
    for run in (
        e,
        replace(e, parallel=tools.on(Mesh(fsdp=4, tensor=2))),
        replace(e, parallel=tools.on(Mesh(data=2, fsdp=4))),
        replace(e, training=many),
    ):
        traced = trace(tools.ask(run).program)
        assert dot_flops(traced.jaxpr) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(("window", "share"), [(None, 10 / 16), (512, 7 / 8)])
def test_blocks_that_a_kernel_skips_are_no_work(window, share):
    """Of 4 x 4 blocks of 512: causal 10; a window leaves 7 of a grid narrowed to 4 x 2."""
    q = jax.ShapeDtypeStruct((1, 2048, 2, 64), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, 2048), jnp.int32)

    def attend(q, ids):
        where = Where(ids, ids)
        return splash.attend(q, q, q, where, where, Pattern(window=window), interpret=True)

    forward = dot_flops(jax.jit(attend).trace(q, ids).jaxpr)
    both = jax.grad(lambda q, ids: attend(q, ids).sum())
    grid = 16 if window is None else 8
    product = 2 * 2 * 512 * 512 * 64 * grid
    assert forward == pytest.approx(2 * product * share, rel=1e-3)
    # The backward kernels make scores and their gradients again: seven products.
    assert dot_flops(jax.jit(both).trace(q, ids).jaxpr) == pytest.approx(
        9 * product * share, rel=1e-3
    )


def test_whole_block_remat_computes_the_forward_pass_of_the_blocks_again(tools):
    """All but what nobody reads again: the last product of each block gives only its output."""
    e = tools.experiment(execution=Execution(scan="scan", attention_kernel="whole"))
    question = tools.ask(e)
    again = tools.ask(replace(e, execution=replace(e.execution, remat="block")))
    more = dot_flops(trace(again.program).jaxpr) - dot_flops(trace(question.program).jaxpr)
    tokens, layers = e.training.tokens_per_step, 2
    head = 2 * tokens * 64 * WIDTH
    down = 2 * tokens * 64 * WIDTH * layers
    forward = question.flops.full * tokens / 3
    assert more == pytest.approx(forward - head - down, rel=1e-6)


def test_what_tensor_splits_is_kept_in_parts(tools):
    """Twice the rows for each device, but half of their positions, heads and inner width."""
    alone = kept(tools.ask(tools.experiment(parallel=tools.on(Mesh(fsdp=8)))))
    split = kept(tools.ask(tools.experiment(parallel=tools.on(Mesh(fsdp=4, tensor=2)))))
    assert 0.8 * alone < split < 1.2 * alone
