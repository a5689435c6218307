"""Families have their published sizes."""

import jax
import pytest

from lm.layers.execution import Execution
from lm.models import gpt2, llama
from lm.parallel.shardings import count

PUBLISHED = {
    # Hugging Face's num_parameters of openai-community/gpt2, -medium, -large, -xl
    "gpt2_124m": (gpt2.gpt2_124m, 50_257, 124_439_808),
    "gpt2_355m": (gpt2.gpt2_355m, 50_257, 354_823_168),
    "gpt2_774m": (gpt2.gpt2_774m, 50_257, 774_030_080),
    "gpt2_1558m": (gpt2.gpt2_1558m, 50_257, 1_557_611_200),
    # and of meta-llama's
    "llama2_7b": (llama.llama2_7b, None, 6_738_415_616),
    "llama2_13b": (llama.llama2_13b, None, 13_015_864_320),
    "llama2_70b": (llama.llama2_70b, None, 68_976_648_192),
    "llama3_8b": (llama.llama3_8b, None, 8_030_261_248),
    "llama3_70b": (llama.llama3_70b, None, 70_553_706_496),
    "llama3_1b": (llama.llama3_1b, None, 1_235_814_400),
    "llama3_3b": (llama.llama3_3b, None, 3_212_749_824),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_their_parameters(name):
    family, vocab_size, expected = PUBLISHED[name]
    config = family() if vocab_size is None else family(vocab_size)
    shapes = jax.eval_shape(config.build(Execution()).init, jax.random.key(0))
    assert count(shapes) == expected
