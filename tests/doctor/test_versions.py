import re
from pathlib import Path

import pytest

from lm.doctor import versions

ROOT = Path(__file__).parents[2]


def facts(**changed) -> dict:
    usual = {
        "host": "a",
        "process": 1,
        "python": "3.11.7",
        "packages": {"jax": "0.10.2", "jaxlib": "0.10.2"},
        "code": "c0de" * 16,
        "config": None,
        "mismatches": [],
    }
    return {**usual, **changed}


def names(ranks) -> str:
    return ", ".join(f"process {rank} (host-{rank})" for rank in sorted(ranks))


def judged(*told: dict) -> dict:
    return {check.name: check for check in versions.judge(dict(enumerate(told)), names)}


def test_what_runs_here_belongs_together_and_is_told():
    found = judged(versions.facts("ab" * 32))
    assert {check.status for check in found.values()} <= {"ok", "warn"}
    assert re.search(r"jax \d+\.\d+", found["versions"].said)
    assert found["versions"].figures["jax"]


@pytest.mark.parametrize(
    ("changed", "line", "said"),
    [
        ({"python": "3.12.1"}, "versions", "python 3.12.1, not 3.11.7"),
        ({"packages": {"jax": "0.10.2", "jaxlib": "0.10.1"}}, "versions", "jaxlib 0.10.1"),
        ({"packages": {"jax": "0.10.2"}}, "versions", "jaxlib none, not 0.10.2"),
        ({"code": "beef" * 16}, "code", "lm beefbeefbeefbeef"),
        ({"config": "f00d" * 16}, "code", "config f00df00df00df00d"),
    ],
)
def test_a_host_with_another_version_is_named(changed, line, said):
    found = judged(facts(), facts(), facts(**changed))
    assert found[line].status == "WRONG"
    assert f"process 2 (host-2): {said}" in found[line].said
    assert found[line].mend
    assert all(check.status == "ok" for name, check in found.items() if name != line)


def test_the_same_everywhere_is_well():
    assert {check.status for check in judged(facts(), facts()).values()} == {"ok"}


def test_a_version_that_jax_was_not_built_with_is_told():
    planted = {"libtpu": "0.0.1", "jaxlib": "0.4.0"}
    lines = versions.mismatches(lambda name: planted.get(name) or versions.version_of(name))
    assert any("libtpu" in line and "0.0.1 is installed" in line for line in lines), lines
    assert any("jaxlib" in line and "0.4.0 is installed" in line for line in lines), lines
    check = judged(facts(mismatches=lines))["versions"]
    assert check.status == "WRONG"
    assert "libtpu" in check.said
    assert versions.mismatches() == []


def test_what_is_newer_than_tested_is_a_warning():
    check = judged(facts(packages={"jax": "99.0", "jaxlib": "99.0"}))["versions"]
    assert check.status == "warn"
    assert "newer than" in check.said


@pytest.mark.parametrize(
    ("version", "bounds", "fits"),
    [
        ("0.10.2", "<=0.10.2,>=0.10.1", True),
        ("0.10.3", "<=0.10.2,>=0.10.1", False),
        ("0.9", ">=0.10", False),
        ("0.0.42.1", "==0.0.42.*", True),
        ("0.0.43", "==0.0.42.*", False),
        ("1.0", "==1.0.0", True),
        ("1.4", "~=1.2", True),
        ("2.0", "~=1.2", False),
        ("1.5", "!=1.5", False),
        ("2.0.0+cuda12", ">=2", True),
        ("7", "", True),
    ],
)
def test_bounds_are_read_as_pip_reads_them(version, bounds, fits):
    assert versions.within_bounds(version, bounds) is fits


def test_requirements_are_read_with_their_extras():
    read = versions.read_requirement
    assert read('libtpu==0.0.42.*; extra == "tpu"') == ("libtpu", "==0.0.42.*", "tpu")
    plugin = 'jax-cuda12-plugin[with-cuda]<=0.10.2,>=0.10.2; extra == "cuda12"'
    assert read(plugin) == ("jax-cuda12-plugin", "<=0.10.2,>=0.10.2", "cuda12")
    assert read("jax >= 0.6.0") == ("jax", ">= 0.6.0", None)


def test_what_is_called_tested_is_what_the_gate_pins():
    pins = re.findall(r"^jax==(\S+);", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert versions.TESTED["jax"] == (pins[0], pins[-1])


def test_the_digest_is_of_lms_own_files(tmp_path, monkeypatch):
    package = tmp_path / "lm"
    (package / "doctor").mkdir(parents=True)
    (package / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(versions, "__file__", str(package / "doctor" / "versions.py"))
    before = versions.code_digest()
    (package / "a.py").write_text("x = 2\n")
    assert versions.code_digest() != before
