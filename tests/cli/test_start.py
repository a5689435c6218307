"""Help and mistakes answer before anything heavy is loaded."""

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
    "words",
    [["--training.sequences", "12"], ["--parallel.mesh.data", "3"], ["--training.length", "0"]],
    ids=["a batch", "a mesh", "a size"],
)
def test_a_mistake_in_shapes_is_told_before_what_trains_is_loaded(words):
    """Orbax and Grain take as long to load as everything before them."""
    code, roots, said = loaded("train", str(TINY), *words)
    assert code == 2, said
    assert said.count("lm: ") == 1
    assert "Traceback" not in said
    assert not roots & set(HEAVY)
