"""FLOPs a token against a count by hand."""

import jax
import pytest

from lm.layers.execution import Execution
from lm.models.decoder import windowed
from lm.models.flops import training_flops_per_token
from lm.models.gpt2 import gpt2_124m
from lm.models.llama import llama2_7b


def flops(config, length):
    model = config.build(Execution())
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return training_flops_per_token(config, model.leaves, shapes, length)


def test_gpt2_small_costs_six_operations_a_weight_and_its_attention():
    """12 blocks of 12 D^2 weights and the head; attention: 2 products, 2 operations, 3 passes."""
    D, L, V, T = 768, 12, 50_257, 1024
    products = 6 * (L * 12 * D * D + V * D)
    found = flops(gpt2_124m(V), T)
    assert found.full == products + 12 * L * D * T
    assert found.causal == products + 12 * L * D * (T + 1) / 2


def test_an_untied_head_counts_once_and_the_lookup_not_at_all():
    D, F, L, V, T = 4096, 11_008, 32, 32_000, 2048
    expected = 6 * (L * (4 * D * D + 3 * D * F) + V * D) + 12 * L * D * T
    assert flops(llama2_7b(), T).full == expected


def test_a_window_bounds_what_attention_costs():
    """Of 1,024 queries the first 256 see 1 to 256 keys, the others 256."""
    D, L, T, W = 768, 12, 1024, 256
    plain, near = flops(gpt2_124m(), T), flops(windowed(gpt2_124m(), W), T)
    seen = (sum(range(1, W + 1)) + (T - W) * W) / T
    assert plain.full - near.full == 0
    assert near.causal == pytest.approx(plain.causal - 12 * L * D * ((T + 1) / 2 - seen))
