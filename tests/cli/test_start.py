"""Help and mistakes answer before anything heavy is loaded."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

TINY = Path(__file__).parents[2] / "configs" / "smoke" / "tiny.py"
HEAVY = ("grain", "orbax", "tensorstore", "torch", "transformers")
RUN = """
import sys
from lm.cli.main import main
try:
    code = main(sys.argv[1:])
except SystemExit as ended:
    code = ended.code or 0
roots = {name.partition(".")[0] for name in sys.modules}
print("LOADED", *sorted(roots), file=sys.stderr)
sys.exit(code)
"""


def loaded(*words: str) -> tuple[int, set[str], str]:
    """Exit code, which top-level packages were loaded, and what was said."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, *words], capture_output=True, text=True, check=False
    )
    *said, last = done.stderr.strip().splitlines()
    assert last.startswith("LOADED"), done.stderr
    return done.returncode, set(last.split()[1:]), "\n".join(said)


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["train", "--help"],
        ["corpus", "tokenize", "--help"],
        ["trian"],
        ["generate", "nowhere", "--prompt", "x"],
        ["generate", "nowhere", "--temperature", "-1"],
    ],
    ids=" ".join,
)
def test_help_and_mistakes_of_words_load_no_library(words):
    _, roots, _ = loaded(*words)
    assert not roots & {"jax", "numpy", "flax", "tyro", *HEAVY}


def test_a_text_verb_loads_no_jax():
    code, roots, said = loaded(
        "tokenizer", "train", "nowhere.txt", "--vocab-size", "9", "--out", "x"
    )
    assert code == 2, said
    assert not roots & {"jax", "flax", *HEAVY}


@pytest.mark.parametrize("words", [["--training.step", "3"], ["--training.steps", "x"]], ids=str)
def test_a_mistake_in_a_config_is_told_before_the_verb_is_loaded(words):
    code, roots, said = loaded("train", str(TINY), *words)
    assert code == 2
    assert "--training.steps" in said
    assert "jax" in roots, "a config's parts are JAX's"
    assert not roots & {"orbax", "tensorstore", "torch", "transformers", "tyro"}


@pytest.mark.parametrize(
    ("words", "code", "seconds"),
    [
        (["--help"], 0, 0.5),
        (["export", "--help"], 0, 0.5),
        (["trian"], 2, 0.5),
        (["train", str(TINY), "--training.step", "3"], 2, 2.0),
        (["train", str(TINY), "--training.sequences", "12"], 2, 2.0),
    ],
    ids=["help", "help of a verb", "a verb", "a key", "a batch"],
)
def test_answers_come_soon_and_without_a_traceback(words, code, seconds):
    """By processor time of the child: wall time would measure what else the machine does."""
    command = [sys.executable, "-m", "lm", *words]
    took = []
    for _ in range(2):
        before = _children()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        took.append(_children() - before)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        if min(took) < seconds:
            return
    assert min(took) < seconds


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
