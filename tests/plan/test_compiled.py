"""What the compiler refuses for another reason than memory is quoted, and kept whole."""

import time
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from lm.plan.compiled import CompileError, build

REASON = "INTERNAL: Mosaic failed to compile TPU kernel: bad layout\nin this line\n" + "x" * 5000


def lowered(error: str | None = None, text: str | None = None, peak: int = 0):
    def compile():
        if error is not None:
            raise jax.errors.JaxRuntimeError(error)
        return SimpleNamespace(memory_analysis=sizes, as_text=as_text)

    def as_text():
        if text is None:
            raise RuntimeError("UNIMPLEMENTED: cannot print\nmore")
        return text

    def sizes():
        return SimpleNamespace(
            argument_size_in_bytes=10,
            output_size_in_bytes=8,
            alias_size_in_bytes=6,
            temp_size_in_bytes=100,
            generated_code_size_in_bytes=3,
            peak_memory_in_bytes=peak,
        )

    return SimpleNamespace(lower=lambda: SimpleNamespace(compile=compile))


def test_a_refusal_is_quoted_and_kept_in_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(CompileError, match="Mosaic failed to compile TPU kernel") as refused:
        build(lowered(REASON), time.perf_counter(), "mine")
    (kept,) = tmp_path.iterdir()
    assert str(kept) in str(refused.value)
    assert Path(kept).read_text(encoding="utf-8") == REASON
    assert len(str(refused.value)) < 1200


def test_a_program_that_cannot_be_printed_still_has_sizes():
    made = build(lowered(), time.perf_counter(), "mine")
    assert made.text is None
    assert made.no_text == "the compiled program cannot be printed (UNIMPLEMENTED: cannot print)"
    assert made.sizes is not None
    assert made.sizes.peak == 10 + 8 - 6 + 100


@pytest.mark.parametrize(("told", "meant"), [(70, 70), (0, 112), (13, 112)])
def test_a_peak_is_believed_unless_it_leaves_the_temporaries_out(told, meant):
    """As that of XLA's CPU compiler does; a TPU's is less than the sum of the other figures."""
    made = build(lowered(peak=told), time.perf_counter(), "mine")
    assert made.sizes is not None
    assert made.sizes.peak == meant


def test_out_of_memory_is_an_answer():
    text = "RESOURCE_EXHAUSTED: HLO temporaries (20.00G) exceeds available HBM (15.75G)."
    made = build(lowered(text), time.perf_counter(), "mine")
    assert made.sizes is None
    assert made.shortage is not None
