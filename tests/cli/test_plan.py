"""``lm plan``: devices that are elsewhere, figures for machines, and mistakes told."""

import importlib.util
import json
from pathlib import Path

import jax
import pytest

from lm.cli.main import main

TINY = str(Path(__file__).parents[2] / "configs" / "smoke" / "tiny.py")
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install -e '.[plan]'",
)


def test_json_on_stdout_is_only_json(capsys):
    words = ["plan", TINY, "--devices", "cpu:8", "--json", "-", "--execution.scan", "scan"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert told["name"] == "tiny"
    assert told["fits"] is True
    assert told["mesh"]["fsdp"] == [8]
    assert "memory" in err
    assert "changed    execution.scan" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--topology v5x:4x4", ("v5x", "Did you mean")),
        ("--topology v5e:5x5", ("5x5", "The nearest", "v5e:4x4")),
        ("--topology v5e:16", ("16 chips", "Write the grid", "v5e:4x4")),
        ("--topology h100:8", ("no TPU 'h100'", "v5e", "--devices cpu:8")),
        ("--devices gpu:8", ("gpu", "cpu:8")),
        ("--topology cpu:8 --devices cpu:8", ("not allowed with",)),
        ("", ("--topology", "--devices")),
        ("--devices cpu:8 --slices 0", ("--slices", "1 or more")),
        ("--devices cpu:8 --training.sequences 12", ("12", "16")),
        ("--devices cpu:8 --parallel.mesh.fsdp 3", ("fsdp=3", "8")),
        ("--devices cpu:8 --execution.remat blok", ("'blok'", "block")),
    ],
)
def test_a_mistake_is_one_paragraph_with_its_mend(capsys, words, told):
    assert main(["plan", TINY, *words.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("lm")
    assert err.count("\n") == 1
    assert all(part in err for part in told), err


def test_without_libtpu_the_extra_is_named(capsys, monkeypatch):
    monkeypatch.setattr("lm.plan.topology.importlib.util.find_spec", lambda name: None)
    assert main(["plan", TINY, "--topology", "v5e:4x4"]) == 2
    assert "pip install -e '.[plan]'" in capsys.readouterr().err


def test_what_the_compiler_refuses_is_told_and_kept_in_a_file(capsys, monkeypatch, tmp_path):
    reason = "INTERNAL: Mosaic failed to compile TPU kernel: bad layout\n" + "detail\n" * 500

    def refuse(*_, **__):
        raise jax.errors.JaxRuntimeError(reason)

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["plan", TINY, "--devices", "cpu:8"]) == 2
    out, err = capsys.readouterr()
    told = err.splitlines()[-1]
    assert "Traceback" not in out + err
    assert told.startswith("lm: tiny: the compiler refuses the step: INTERNAL: Mosaic failed")
    (kept,) = tmp_path.iterdir()
    assert str(kept) in told
    assert kept.read_text(encoding="utf-8") == reason


@needs_libtpu
@pytest.mark.tpu_compile
@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--parallel.mesh.fsdp 3", ("fsdp=3", "16 devices", "tensor=4")),
        ("--parallel.mesh.context 3", ("context=3", "16 devices")),
        ("--training.sequences 12", ("12 rows", "16 devices", "Use 16 rows")),
    ],
)
def test_what_does_not_divide_a_slice_is_told_with_what_does(capsys, words, told):
    assert main(["plan", TINY, "--topology", "v5e:4x4", *words.split()]) == 2
    paragraph = capsys.readouterr().err.splitlines()[-1]
    assert paragraph.startswith("lm: ")
    assert all(part in paragraph for part in told), paragraph


@needs_libtpu
@pytest.mark.tpu_compile
def test_a_tiny_run_is_planned_for_a_slice(capsys):
    words = ["plan", TINY, "--topology", "v5e:4x4", "--training.sequences", "16", "--json", "-"]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    h = told["hbm_gib"]
    parts = sum(size for name, size in h.items() if name not in ("limit", "peak"))
    assert parts == pytest.approx(h["peak"], rel=0.02)
    assert h["limit"] == 15.75
    assert told["collectives"]
    assert 0 < told["mfu_ceiling"] < 1
    assert told["bound_seconds"]["step"] >= told["bound_seconds"]["compute"]


@needs_libtpu
@pytest.mark.tpu_compile
@pytest.mark.slow
def test_a_run_that_does_not_fit_exits_with_3_and_names_what_fits(capsys):
    """Six long rows on each chip, nothing recomputed; five compiles of a minute together."""
    words = ["plan", TINY, "--topology", "v5e:2x2", "--json", "-", "--execution.scan", "scan"]
    words += ["--training.sequences", "256", "--training.length", "2048"]
    assert main(words) == 3
    told = json.loads(capsys.readouterr().out)
    assert told["short_gib"] > 0
    assert told["changes"]
    assert all(c["fits"] and c["peak_gib"] <= 15.75 for c in told["changes"])
