"""The command line of launch: mistakes, and what ``--go`` does."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.job import Command, LaunchError, duration

ROOT = Path(__file__).parents[2]
GKE = ("gke", "--name", "a", "--image", "i", "--bucket", "b")
TPU = ("tpu-vm", "--name", "a", "--type", "v5e-64", "--zone", "z")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "required: LAUNCHER"),
        (("slrum",), "invalid choice: 'slrum'"),
        (("slurm", "--", "lm"), "required: --name"),
        (("slurm", "--name", "a"), "no command was given"),
        (("slurm", "--name", "a", "--"), "no command was given"),
        (("slurm", "--name", "a", "lm", "train"), "unrecognized arguments: lm train"),
        (("slurm", "--name", "a", "--nodes", "0", "--", "lm"), "--nodes 0 must be above zero"),
        (("slurm", "--name", "a", "--nodes", "-1", "--", "lm"), "--nodes -1 must be above zero"),
        ((*TPU, "--slices", "two", "--", "lm"), "invalid int value: 'two'"),
        ((*TPU, "--type", "v5e-63", "--", "lm"), "nearest are v5litepod-64"),
        ((*TPU, "--do", "upp", "--", "lm"), "the verbs are up"),
        ((*TPU, "--name", "7B", "--", "lm"), "small letters"),
        ((*GKE, "--", "lm"), "either --type"),
        ((*GKE, "--type", "v5e-64", "--name", "A_b", "--", "lm"), "for instance 'a-b'"),
        ((*GKE, "--type", "v5e-64", "--env", "A-B=1", "--", "lm"), "no name of a variable"),
    ],
)
def test_a_mistake_is_one_paragraph_with_2_and_runs_nothing(words, told, tmp_path, capsys):
    at = words.index("--") if "--" in words else len(words)
    go = () if not words or words[0] == "slrum" else ("--go",)
    assert main((*words[:at], *go, *words[at:])) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("launch: ")
    assert len(err.splitlines()) == 1
    assert told in err


@pytest.mark.parametrize(("code", "ends"), [(0, 0), (7, 7)])
def test_go_runs_what_is_printed_without_it(code, ends, tmp_path):
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(f'#!/bin/bash\ncat >"{tmp_path}/given"\nexit {code}\n')
    sbatch.chmod(0o755)
    words = [sys.executable, "-m", "launch", "slurm", "--name", "a", "--", "lm", "train", "it's"]
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    shown = subprocess.run(words, env=env, capture_output=True, text=True, check=True).stdout
    assert not (tmp_path / "given").exists()
    words.insert(4, "--go")
    done = subprocess.run(words, env=env, check=False)
    assert done.returncode == ends
    given = (tmp_path / "given").read_text()
    assert given in shown
    subprocess.run(["bash"], input=shown, env=env, text=True, check=False)
    assert (tmp_path / "given").read_text().rstrip("\n") == given.rstrip("\n")


def test_a_tool_that_is_not_here_is_a_mistake(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main((*TPU, "--go", "--", "lm")) == 2
    assert "bash is not on this machine's PATH" in capsys.readouterr().err


def test_a_command_prints_as_shell_that_gives_the_same_words_and_input():
    stdin = "a line\nEND\n$HOME `x`\n"
    command = Command((sys.executable, "-c", TELL, "it's", "$HOME", ""), "two\nlines", stdin)
    done = subprocess.run(
        ["bash"], input=command.text(), capture_output=True, text=True, check=True
    )
    assert done.stdout == ascii((["it's", "$HOME", ""], stdin)) + "\n"


TELL = "import sys; print(ascii((sys.argv[1:], sys.stdin.read())))"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("20", 20), ("1.5", 1.5), ("90s", 90), ("20m", 1200), ("3h50m", 13800), ("1d", 86400)],
)
def test_times_are_read(text, seconds):
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "3x", "-3", "3 h"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(LaunchError, match="is no time"):
        duration(text)


def test_the_launchers_need_the_standard_library_alone():
    for path in (ROOT / "launch").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            else:
                continue
            for name in names:
                assert name.split(".")[0] in {*sys.stdlib_module_names, "launch"}, (path, name)
