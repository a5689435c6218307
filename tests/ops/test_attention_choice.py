"""Which kernel runs, why, and what is refused."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.errors import ConfigError, ShardingError
from lm.ops.attention import cudnn
from lm.ops.attention.attend import Target, attend, choose
from lm.ops.attention.pattern import Pattern, Where

CACHE = Pattern(ordered=False)
CAPPED = Pattern(soft_cap=30.0)


@pytest.mark.parametrize(
    ("platform", "length", "dtype", "pattern", "shards", "chosen", "why"),
    [
        ("tpu", 2048, "bfloat16", Pattern(), 1, "splash", "2048 is a multiple of 128"),
        ("tpu", 2048, "float32", CAPPED, 1, "splash", "2048 is a multiple of 128"),
        ("tpu", 256, "bfloat16", Pattern(), 1, "blocked", "256 is below 512"),
        ("tpu", 128, "bfloat16", Pattern(), 1, "whole", "128 is below 256"),
        ("tpu", 1000, "bfloat16", Pattern(), 1, "blocked", "as 1024, not 1000"),
        ("tpu", 2048, "bfloat16", CACHE, 1, "blocked", "not the same tokens"),
        ("tpu", 32768, "bfloat16", Pattern(), 4, "splash", "TPU"),
        ("tpu", 1536, "bfloat16", Pattern(), 4, "blocked", "as 2048, not 1536"),
        ("gpu", 2048, "bfloat16", Pattern(), 1, "cudnn", "GPU, 16-bit"),
        ("cuda", 2048, "bfloat16", Pattern(window=100), 2, "cudnn", "GPU, 16-bit"),
        ("gpu", 2048, "float32", Pattern(), 1, "blocked", "not in float32"),
        ("gpu", 2048, "bfloat16", CAPPED, 1, "blocked", "soft cap"),
        ("gpu", 32768, "bfloat16", Pattern(), 1, "blocked", "above 8192"),
        ("cpu", 2048, "bfloat16", Pattern(), 1, "blocked", "2048 is 256 or more"),
        ("cpu", 200, "float32", CACHE, 1, "whole", "200 is below 256"),
    ],
)
def test_auto_takes_the_fastest_that_can_and_says_why(
    platform, length, dtype, pattern, shards, chosen, why
):
    choice = choose("auto", platform, length, 64, dtype, pattern, shards=shards)
    assert choice.kernel == chosen
    assert why in choice.why


@pytest.mark.parametrize(
    ("kernel", "platform", "length", "width", "dtype", "pattern", "keys", "why"),
    [
        ("splash", "cpu", 512, 64, "float32", Pattern(), None, "runs on a TPU.*'cpu'"),
        ("splash", "tpu", 500, 64, "float32", Pattern(), None, "multiples of 128, as 512.*blocked"),
        ("splash", "tpu", 512, 64, "float32", CACHE, None, "not the same tokens"),
        ("splash", "tpu", 128, 64, "float32", Pattern(), 512, "not the same tokens.*here whole"),
        ("cudnn", "tpu", 512, 64, "bfloat16", Pattern(), None, "runs on a GPU.*'tpu'.*splash"),
        (
            "cudnn",
            "gpu",
            512,
            64,
            "float32",
            Pattern(),
            None,
            "bfloat16 or float16, not in float32",
        ),
        ("cudnn", "gpu", 512, 60, "bfloat16", Pattern(), None, "multiple of 8 up to 256, not 60"),
        ("cudnn", "gpu", 512, 64, "bfloat16", CAPPED, None, r"no soft cap \(here 30"),
        ("cudnn", "gpu", 511, 64, "bfloat16", Pattern(), None, "even lengths, not 511"),
        ("flash", "gpu", 511, 64, "bfloat16", Pattern(), None, "no kernel 'flash'. Choose from"),
    ],
)
def test_a_kernel_that_cannot_run_is_refused_with_what_would(
    kernel, platform, length, width, dtype, pattern, keys, why
):
    with pytest.raises(ConfigError) as refused:
        # Beartype stands at the door for a misspelt name; a user's comes past no such door.
        getattr(choose, "__wrapped__", choose)(
            kernel, platform, length, width, dtype, pattern, keys
        )
    assert re.search(why, str(refused.value))


def test_the_door_refuses_what_the_choice_refuses():
    x = jnp.zeros((1, 512, 1, 8))
    where = Where(*jnp.zeros((2, 1, 512), jnp.int32))
    with pytest.raises(ConfigError, match="runs on a TPU"):
        attend(x, x, x, where, where, Pattern(), "splash")
    with pytest.raises(ShardingError, match="510 tokens cannot be shared 4 ways"):
        choose("blocked", "cpu", 510, 64, "float32", Pattern(), shards=4)


def some(length, width=64):
    rng = np.random.default_rng(0)
    q, k, v, d = (rng.normal(size=(2, length, n, width)) for n in (4, 2, 2, 4))
    segments = np.ones((2, length), np.int32)
    segments[0, length // 3 :] = 2
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), (2, length)).copy()
    positions[0, length // 3 :] -= length // 3
    where = Where(jnp.asarray(segments), jnp.asarray(positions))
    return [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v, d)], where


def with_gradients(kernel, pattern, where):
    def both(q, k, v, d):
        out, pull = jax.vjp(lambda *x: attend(*x, where, where, pattern, kernel), q, k, v)
        return out, *pull(d)

    return jax.jit(both)


@pytest.mark.parametrize("pattern", [Pattern(), Pattern(window=50), Pattern(causal=False)])
def test_cudnn_lowers_for_a_gpu_that_is_not_here(pattern, monkeypatch):
    """Forward and backward become cuDNN's fused calls; jax, which looks for one, is told of it."""
    try:
        monkeypatch.setattr(
            "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91_000
        )
    except AttributeError:
        pytest.skip("this jax looks for cuDNN elsewhere")
    arrays, where = some(256)
    traced = with_gradients(Target("cudnn", "cuda"), pattern, where).trace(*arrays)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmhaScaleBiasSoftmax(" in text
    assert "__cudnn$fmhaScaleBiasSoftmaxBackward(" in text


def test_cudnn_skips_by_index_only_where_rows_lie_in_order():
    _, where = some(256)
    assert cudnn.arguments(where, where, Pattern())["is_causal"]
    assert not cudnn.arguments(where, where, CACHE)["is_causal"]
    shard = Where(*(x[:, :128] for x in where))
    assert not cudnn.arguments(shard, where, Pattern())["is_causal"]


@pytest.mark.gpu
@pytest.mark.parametrize("pattern", [Pattern(), Pattern(window=50), Pattern(causal=False)])
def test_cudnn_equals_whole_scores(pattern):
    arrays, where = some(512)
    found = with_gradients(Target("cudnn", "gpu"), pattern, where)(*arrays)
    wanted = with_gradients("whole", pattern, where)(*(x.astype(jnp.float32) for x in arrays))
    for got, want in zip(found, wanted, strict=True):
        np.testing.assert_allclose(np.asarray(got, np.float32), want, atol=6e-2, rtol=3e-2)
