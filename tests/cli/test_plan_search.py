"""``lm plan --search``: what is compiled, remembered and written, and mistakes told."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from lm.cli.config import load_experiment
from lm.cli.main import main
from lm.plan import hardware, planning
from lm.plan.compiled import Built, Shortage, Sizes
from lm.plan.roofline import Links

TINY = str(Path(__file__).parents[2] / "configs" / "smoke" / "tiny.py")
SEARCH = ["plan", TINY, "--topology", "v5e:2x4", "--search", "--compiles", "1", "--json", "-"]
SEARCH += ["--execution.scan", "scan"]


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """Processors stand for the chips of the slice, joined at a gigabyte a second."""
    compiled = SimpleNamespace(count=0)
    jax.config.update("jax_disable_most_optimizations", True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("lm.cli.asking.devices_for", lambda asked: jax.devices())
    for name in ("analytic", "roofline"):
        monkeypatch.setattr(f"lm.plan.{name}.links", lambda *_: Links(1e9, network=False))
    monkeypatch.setattr("lm.plan.settings.SAVES", ((),))
    monkeypatch.setattr("lm.plan.planning.remat_choices", lambda: ("nothing", "block"))
    build = planning.build

    def counted(*words):
        compiled.count += 1
        return build(*words)

    monkeypatch.setattr("lm.plan.planning.build", counted)
    yield compiled
    jax.config.update("jax_disable_most_optimizations", False)


def test_the_fastest_is_compiled_written_and_remembered(elsewhere, tmp_path, capsys):
    target = tmp_path / "fastest.json"
    assert main([*SEARCH, "--write", str(target)]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert elsewhere.count == told["search"]["compiled"] == 1
    assert not told["search"]["remembered"]
    assert told["best"]["bound_seconds"] == told["bound_seconds"]
    assert told["fits"] is True
    first = told["candidates"][0]
    assert first["state"] == "compiled"
    assert first["step_seconds"] == told["bound_seconds"]["step"]
    assert "compiling  1 of at most 1" in err
    assert "rank" in err
    assert str(target) in err

    # Again: nothing is compiled, and the same is told.
    assert main([*SEARCH, "--write", str(target)]) == 0
    again = json.loads(capsys.readouterr().out)
    assert elsewhere.count == 1
    assert again["search"].pop("remembered") is True
    told["search"].pop("remembered")
    assert again == told

    # What was written is the winner, and plans to the same figures.
    written = load_experiment(str(target))
    values = first["settings"]
    assert written.parallel.mesh.fsdp == int(values["parallel.mesh.fsdp"])
    assert written.execution.remat == values["execution.remat"]
    assert written.training.sequences == load_experiment(TINY).training.sequences
    assert main(["plan", str(target), "--topology", "v5e:2x4", "--json", "-"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert elsewhere.count == 2
    for name in ("hbm_gib", "bound_seconds", "collectives", "mesh", "recomputed_flops_per_step"):
        assert alone[name] == told[name]


def answering(monkeypatch, built):
    """A compiler that always says the same; returns how often it was asked."""
    asked = SimpleNamespace(count=0)

    def build(*_):
        asked.count += 1
        return built

    monkeypatch.setattr("lm.plan.planning.build", build)
    return asked


def test_an_interrupted_search_goes_on_from_what_was_compiled(
    elsewhere, monkeypatch, tmp_path, capsys
):
    asked = answering(monkeypatch, Built(Sizes(1e9, 0.0, 0.0), None, "not printed", None, 0.1, 1.0))
    assert main(SEARCH) == 0
    (whole,) = [
        p for p in (tmp_path / "cache" / "lm" / "plans").iterdir() if "candidates" in p.read_text()
    ]
    whole.unlink()
    assert main(SEARCH) == 0
    assert asked.count == 1
    assert main([*SEARCH, "--no-cache"]) == 0
    assert asked.count == 2
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--topology v5e:4x4 --write a.json", ("--write", "--search")),
        ("--topology v5e:4x4 --compiles 3 --no-cache", ("--compiles --no-cache", "--search")),
        ("--devices cpu:8 --search", ("--devices cpu:8", "no figures", "--topology")),
        ("--topology v5e:4x4 --search --write a.py", ("a.py", ".json")),
        ("--topology v5e:4x4 --search --write nowhere/a.json", ("nowhere/a.json", "No such")),
        ("--topology v5e:4x4 --search --compiles 0", ("--compiles", "1 or more")),
        ("--topology v5e:4x4 --search --minutes 0", ("--minutes", "above 0")),
    ],
)  # fmt: skip
def test_a_mistake_is_told_before_anything_is_compiled(
    elsewhere, monkeypatch, tmp_path, capsys, words, told
):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", TINY, *words.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("lm")
    assert err.count("\n") == 1
    assert all(part in err for part in told), err
    assert elsewhere.count == 0


def test_a_folder_is_no_file_to_write(elsewhere, tmp_path, capsys):
    (tmp_path / "a.json").mkdir()
    assert main([*SEARCH, "--write", str(tmp_path / "a.json")]) == 2
    assert "a folder" in capsys.readouterr().err


def test_nothing_fits_exits_with_3_and_says_what_would_help(
    elsewhere, monkeypatch, tmp_path, capsys
):
    small = replace(hardware.V5E, hbm_gib=1e-3)
    monkeypatch.setitem(hardware.CHIPS, "v5e", small)
    short = Shortage(needed=2**25, available=2**20)
    answering(monkeypatch, Built(None, None, "the step does not fit", short, 0.1, 1.0))
    target = tmp_path / "none.json"
    assert main([*SEARCH, "--write", str(target)]) == 3
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert told["fits"] is False
    assert told["best"] is None
    assert told["short_gib"] == pytest.approx(31 / 1024)
    assert "nearest" in err
    assert "--slices 2" in err or "more chips" in err or "larger slice" in err
    assert not target.exists()
