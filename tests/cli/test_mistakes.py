"""What a user does wrong: exit code 2, one paragraph on stderr that names where, the value and the
mend, and nothing half written."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pytest
import zstandard

from lm.checkpoint.lock import Lock
from lm.cli.main import main

ROOT = Path(__file__).parents[2]
TINY = ROOT / "configs" / "smoke" / "tiny.py"

CONFIG = """
from lm.corpus.prepare import Prepare, TrainTokenizer
from lm.data.mixture import Mixture, Weighted
from lm.data.shards import Shards
from lm.data.synthetic import Synthetic
from lm.experiment import Evaluation, Experiment
from lm.models.gpt2 import gpt2_tiny
from lm.models.llama import llama3_70b, llama_tiny
from lm.optim.adamw import AdamW
from lm.optim.schedule import Cosine
from lm.parallel.mesh import Mesh, Parallel
from lm.tokenizers.bytes import Bytes
from lm.tokenizers.sentencepiece import SentencePiece
from lm.train.step import Training


def experiment() -> Experiment:
    parts = dict(
        name="mine",
        model=llama_tiny(320),
        tokenizer=Bytes(),
        data=Mixture(sources=(Weighted(source=Synthetic(vocab_size=259)),)),
        training=Training(steps=4, sequences=8, length=64),
        optimizer=AdamW(schedule=Cosine(peak=1e-2, warmup=1)),
        evaluation=Evaluation(evaluators=()),
    )
    return Experiment(**{**parts, **dict(CHANGES)})
"""


class Mistake(NamedTuple):
    """A command line, what it needs on disk, and what the answer must name."""

    words: str
    says: tuple[str, ...]
    files: Mapping[str, str | bytes] = MappingProxyType({})
    """Path -> content; ``config.py`` may be given as what differs from the config above."""
    before: Callable[[Path, Callable[[str], Path]], None] = lambda folder, bring: None


TEXT = "To be, or not to be, that is the question:\n" * 40
LINES = "".join(json.dumps({"id": f"d{i}", "text": TEXT}) + "\n" for i in range(4))
NOISE = json.dumps({"text": os.urandom(40_000).hex()}).encode() + b"\n"
TRUNCATED = zstandard.compress(NOISE)[:-100]

WORDS = {
    "a verb": Mistake("trian config.py", ("'trian'", "'train'")),
    "an option of lm": Mistake("--versoin", ("'--versoin'", "'--version'")),
    "an option": Mistake("generate runs/x --promt hello", ("--promt", "'--prompt'")),
    "an action": Mistake("corpus tokenise a --out b", ("'tokenise'", "'tokenize'", "--help")),
    "an argument left out": Mistake("export runs/x", ("OUT", "lm export --help")),
    "a kind of tokenizer": Mistake("tokenizer train a --kind bp --out b", ("'bp'", "'bpe'")),
    "no number": Mistake("evaluate runs/x --batch many", ("--batch", "'many'")),
    "an empty batch": Mistake("evaluate runs/x --batch 0", ("--batch", "0", "1 or more")),
    "an evaluator": Mistake("evaluate runs/x --with perplexty", ("'perplexty'", "'perplexity'")),
    "temperature": Mistake("generate runs/x --temperature -1", ("--temperature", "-1", "0")),
    "top-p": Mistake("generate runs/x --top-p 2", ("--top-p", "2", "up to 1")),
    "top-k": Mistake("generate runs/x --top-k 0", ("--top-k", "0", "1 or more")),
    "no tokens": Mistake("generate runs/x --max-tokens 0", ("--max-tokens", "1 or more")),
    "a share": Mistake("corpus tokenize a --tokenizer t --out o --held-out 1.5", ("1.5", "1")),
    "a time": Mistake("train c.py --stop-after soon", ("--stop-after", "'soon'", "3h50m")),
    "steps": Mistake("train c.py --profile 9:3", ("--profile", "'9:3'", "10:13")),
    "a dtype": Mistake("export runs/x out --dtype float23", ("'float23'", "'float32'")),
    "json in no folder": Mistake("report runs --json no/x.json", ("--json no/x.json", "another")),
    "json as a folder": Mistake("report runs --json .", ("--json .", "file")),
}
CONFIGS = {
    "key": Mistake("train config.py --training.step 3", ("--training.step:", "'--training.steps'")),
    "key of nothing": Mistake("train config.py --colour red", ("--colour", "no such name")),
    "type": Mistake("train config.py --training.steps many", ("--training.steps", "'many'", "4")),
    "choice": Mistake(
        "train config.py --execution.compute-dtype bfloat61",
        ("--execution.compute_dtype", "'bfloat61'", "'bfloat16'"),
    ),
    "no value": Mistake("train config.py --training.steps", ("--training.steps", "no value")),
    "range": Mistake("train config.py --training.steps 0", ("training.steps", "0", "1 or more")),
    "a part": Mistake(
        "train config.py --optimizer 3", ("--optimizer", "--optimizer.schedule.peak")
    ),
    "a word alone": Mistake("train config.py 30", ("'30'", "--training.steps 500")),
    "schedule": Mistake(
        "train config.py --optimizer.schedule.warmup 9", ("warmup=9", "4 steps", "training.steps")
    ),
    "file": Mistake("train confg.py", ("confg.py", "'config.py'")),
    "kind of file": Mistake("train notes.txt", ("notes.txt", "Python"), {"notes.txt": "hello"}),
    "folder": Mistake("train runs", ("runs", "experiment.json"), {"runs/a": ""}),
    "function": Mistake("train config.py:experimnt", ("'experimnt'", "'experiment'")),
    "syntax": Mistake("train bad.py", ("bad.py:2", "SyntaxError"), {"bad.py": "\nimport (\n"}),
    "an exception": Mistake(
        "train bad.py",
        ("bad.py:2", "ZeroDivisionError", "Mend"),
        {"bad.py": "def experiment():\n    return 1 / 0\n"},
    ),
    "another value": Mistake(
        "train bad.py", ("bad.py", "int", "Experiment"), {"bad.py": "experiment = lambda: 3"}
    ),
    "no JSON": Mistake("train e.json", ("e.json", "not JSON"), {"e.json": "{"}),
    "key in JSON": Mistake(
        "train e.json",
        ("e.json.nam", "'name'"),
        {"e.json": json.dumps({"kind": "Experiment", "nam": "x"})},
    ),
    "name": Mistake("train config.py --name a/b", ("'a/b'", "folder")),
    "positions": Mistake(
        "train config.py --training.length 4096",
        ("training.length", "4096", "positions"),
        {"config.py": "model=gpt2_tiny(320)"},
    ),
    "rows": Mistake("train config.py --training.sequences 12", ("12 rows", "8 devices", "16")),
    "microbatches": Mistake(
        "train config.py --training.sequences 16 --training.microbatches 3",
        ("16 sequences", "3 microbatches", "1, 2"),
    ),
    "mesh": Mistake("train config.py --parallel.mesh.fsdp 16", ("fsdp=16", "8 devices")),
    "axis": Mistake("train config.py --parallel.mesh.expert 2", ("expert=2", "at 1")),
    "odd positions": Mistake(
        "train config.py --parallel.mesh.context 2 --training.length 34",
        ("rows of 34 tokens cannot be shared 2 ways over the context", "32 or 36"),
    ),
    "a kernel of elsewhere": Mistake(
        "train config.py --execution.attention_kernel splash",
        ("splash runs on a TPU", "'auto'", "'blocked'"),
    ),
    "an odd size": Mistake(
        "train config.py --parallel.mesh.tensor 8",
        ("cannot be split 8 ways", "'tensor'", "parallel.rules"),
    ),
    "memory": Mistake(
        "train config.py",
        ("memory", "GiB", "fewer", "smaller"),
        {"config.py": "model=llama3_70b()"},
    ),
    "tokenizer folder": Mistake(
        "train config.py",
        ("nowhere", "tokenizer"),
        {"config.py": "tokenizer=SentencePiece(path='nowhere')"},
    ),
    "vocabulary": Mistake(
        "train config.py",
        ("259", "200", "model.vocab_size"),
        {"config.py": "model=llama_tiny(200)"},
    ),
    "shards": Mistake(
        "train config.py",
        ("nowhere", "lm corpus tokenize"),
        {"config.py": "data=Mixture(sources=(Weighted(source=Shards(path='nowhere')),))"},
    ),
    "no such document": Mistake(
        "train config.py",
        ("hamlt.txt", "hamlet.txt"),
        {
            "config.py": "tokenizer=None, data=None, prepare=Prepare(sources=('text',), "
            "tokenizer=Bytes(), held_out=('hamlt.txt',))",
            "text/hamlet.txt": TEXT,
            "text/lear.txt": TEXT,
        },
    ),
    "profile beyond the end": Mistake("train config.py --profile 3:9", ("3:9", "1 to 4")),
    "runs below a file": Mistake(
        "train config.py --runs notes", ("notes/mine", "--runs"), {"notes": ""}
    ),
    "runs where none can be": Mistake("train config.py --runs /proc/lm", ("/proc/lm", "--runs")),
    "a folder that is no run": Mistake(
        "train config.py", ("runs/mine", "letter.txt", "--name"), {"runs/mine/letter.txt": "Dear"}
    ),
}


def _corpora() -> dict[str, Mistake]:
    """Every bad corpus, to every verb that reads one."""
    bad: dict[str, tuple[dict[str, str | bytes], str, tuple[str, ...]]] = {
        "missing": ({"text/a.txt": TEXT}, "text/b.txt", ("text/b.txt", "no such file")),
        "empty": ({"text/a.txt": ""}, "text", ("text/a.txt", "no text")),
        "not UTF-8": (
            {"text/a.txt": "ol\xe9\n".encode("latin1")},
            "text",
            ("a.txt", "0xe9", "iconv"),
        ),
        "cut short": ({"a.jsonl.zst": TRUNCATED}, "a.jsonl.zst", ("a.jsonl.zst", "cut short")),
        "no JSON": ({"a.jsonl": LINES + "{oops\n"}, "a.jsonl", ("a.jsonl:5", "{oops", "object")),
        "no field": ({"a.jsonl": '{"txt": "x"}\n'}, "a.jsonl", ("a.jsonl:1", "'text'", "'txt'")),
    }
    verbs = {
        "tokenizer train": "tokenizer train {0} --vocab-size 300 --out out",
        "corpus tokenize": "corpus tokenize {0} --tokenizer bytes --out out",
        "train": "train config.py",
    }
    rows: dict[str, Mistake] = {}
    for verb, words in verbs.items():
        for name, (files, given, says) in bad.items():
            extra: dict[str, str | bytes] = {"bytes/tokenizer_lm.json": '{"kind": "bytes"}'}
            if verb == "train":
                extra["config.py"] = (
                    f"tokenizer=None, data=None, prepare=Prepare(sources=({given!r},), "
                    "tokenizer=TrainTokenizer(vocab_size=300), held_out=0.0)"
                )
            rows[f"{verb}: {name}"] = Mistake(words.format(given), says, {**files, **extra})
    return rows


def _half(folder: Path, bring: Callable[[str], Path]) -> None:
    (bring("tiny") / "checkpoints" / "1" / "digests.json").unlink()


def _flipped(folder: Path, bring: Callable[[str], Path]) -> None:
    files = [p for p in (bring("tiny") / "checkpoints" / "1" / "state").rglob("*") if p.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def _other_tokenizer(folder: Path, bring: Callable[[str], Path]) -> None:
    tokenizer = bring("tiny") / "checkpoints" / "1" / "tokenizer"
    shutil.rmtree(tokenizer)
    assert (
        main(["tokenizer", "train", "words.txt", "--kind", "characters", "--out", str(tokenizer)])
        == 0
    )


def _other_shards(folder: Path, bring: Callable[[str], Path]) -> None:
    assert main(["tokenizer", "train", "words.txt", "--kind", "characters", "--out", "chars"]) == 0
    assert main(["corpus", "tokenize", "words.txt", "--tokenizer", "chars", "--out", "data"]) == 0


def _run_and_other_shards(folder: Path, bring: Callable[[str], Path]) -> None:
    _other_shards(folder, bring)
    bring("tiny")


def _bring(name: str) -> Callable[[Path, Callable[[str], Path]], None]:
    def before(folder: Path, bring: Callable[[str], Path]) -> None:
        bring(name)

    return before


RUN = "runs/tiny"
RUNS = {
    "evaluate: missing": Mistake("evaluate runs/tiny", ("runs/tiny", "no such")),
    "generate: missing": Mistake("generate runs/tiny", ("runs/tiny", "no such")),
    "export: missing": Mistake("export runs/tiny out", ("runs/tiny", "no such")),
    "generate: half": Mistake(f"generate {RUN}", (RUN, "1 are unfinished", "whole"), before=_half),
    "export: half": Mistake(
        f"export {RUN}/checkpoints/1 o", ("digests.json", "missing"), before=_half
    ),
    "generate: damaged": Mistake(
        f"generate {RUN}", (RUN, "damaged", "state/", "another step"), before=_flipped
    ),
    "export: damaged": Mistake(f"export {RUN} out", (RUN, "damaged", "state/"), before=_flipped),
    "inspect: damaged": Mistake(
        f"inspect {RUN} --verify", (RUN, "state/", "another"), before=_flipped
    ),
    "generate: another tokenizer": Mistake(
        f"generate {RUN}", (RUN, "tokenizer"), {"words.txt": TEXT}, before=_other_tokenizer
    ),
    "train: another model": Mistake(
        f"train {TINY} --model.width 128",
        (RUN, "model.width", "64", "128", "--name", "--restart"),
        before=_bring("tiny"),
    ),
    "train: another seed": Mistake(
        f"train {TINY} --training.seed 1",
        (RUN, "training.seed", "--restart"),
        before=_bring("tiny"),
    ),
    "train: shards of another tokenizer": Mistake(
        "train config.py",
        ("data", "tokenizer", "Tokenise"),
        {
            "words.txt": TEXT,
            "config.py": "data=Mixture(sources=(Weighted(source=Shards(path='data')),))",
        },
        before=_other_shards,
    ),
    "tokenize: a folder in use": Mistake(
        "corpus tokenize words.txt --tokenizer chars --out data",
        ("data", "not empty"),
        {"words.txt": TEXT},
        before=_other_shards,
    ),
    "tokenizer: too many ids": Mistake(
        "tokenizer train words.txt --vocab-size 9000 --out out",
        ("9000", "vocab"),
        {"words.txt": TEXT},
    ),
    "tokenize: no tokenizer": Mistake(
        "corpus tokenize words.txt --tokenizer nowhere --out out", ("nowhere",), {"words.txt": TEXT}
    ),
    "evaluate: no such data": Mistake(
        f"evaluate {RUN} --data text.txt", ("text.txt", "no such"), before=_bring("tiny")
    ),
    "evaluate: nothing held out": Mistake(
        f"evaluate {RUN}", ("tiny", "--data"), before=_bring("tiny")
    ),
    "evaluate: shards of another tokenizer": Mistake(
        f"evaluate {RUN} --data data",
        ("data", "tokenizer"),
        {"words.txt": TEXT},
        before=_run_and_other_shards,
    ),
    "generate: a long prompt": Mistake(
        f"generate {RUN} --prompt {'x' * 100}",
        ("101 tokens", "64", "Shorten it by 37"),
        before=_bring("tiny"),
    ),
    "generate: an empty stop": Mistake(
        f"generate {RUN} --stop ''", ("stop", "empty"), before=_bring("tiny")
    ),
    "export: a folder in use": Mistake(
        f"export {RUN} out", ("out", "files already"), {"out/a": ""}, before=_bring("tiny")
    ),
    "export: a part without a name there": Mistake(
        "export runs/capped out", ("logit_soft_cap",), before=_bring("capped")
    ),
    "inspect: nonsense": Mistake("inspect nonsense", ("nonsense", "no such")),
    "inspect: an empty folder": Mistake("inspect empty", ("empty", "checkpoint"), {"empty/a": ""}),
    "inspect: verify a config": Mistake("inspect config.py --verify", ("config.py", "--verify")),
    "inspect: change a run": Mistake(
        f"inspect {RUN} --model.width 3", ("--model.width",), before=_bring("tiny")
    ),
    "report: missing": Mistake("report runs/none", ("runs/none", "no such run")),
    "report: no run": Mistake("report text", ("text", "run"), {"text/a.txt": TEXT}),
}
TABLE = {**WORDS, **CONFIGS, **_corpora(), **RUNS}


@pytest.mark.parametrize("name", TABLE)
def test_a_mistake_is_answered_with_one_paragraph_that_says_how_to_mend_it(
    name, tmp_path, monkeypatch, capfd, bring
):
    monkeypatch.chdir(tmp_path)
    mistake = TABLE[name]
    _write(tmp_path, mistake.files)
    mistake.before(tmp_path, bring)
    there = _tree(tmp_path)
    capfd.readouterr()
    code = main(shlex.split(mistake.words))
    told = capfd.readouterr().err
    assert code == 2, told
    lines = told.strip().splitlines()
    assert len(lines) == 1, told
    assert lines[0].startswith("lm"), told
    for part in mistake.says:
        assert part in lines[0], f"{part!r} is missing of: {told}"
    assert _tree(tmp_path) == there, "something was left behind"


def test_a_run_that_is_trained_already_is_refused_and_left_alone(
    tmp_path, monkeypatch, capfd, bring
):
    monkeypatch.chdir(tmp_path)
    lock = Lock(bring("tiny"))
    there = _tree(tmp_path)
    for words in (["train", str(TINY)], ["train", str(TINY), "--restart"]):
        assert main(words) == 2
        told = capfd.readouterr().err
        assert "runs/tiny" in told
        assert f"process {os.getpid()}" in told
        assert "--name" in told
    assert _tree(tmp_path) == there
    lock.release()


def test_a_lock_ends_with_its_process_and_leaves_no_empty_folder(tmp_path):
    folder = tmp_path / "runs" / "mine"
    hold = (
        "import os; from pathlib import Path; from lm.checkpoint.lock import Lock; "
        f"lock = Lock(Path({str(folder)!r})); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", hold], check=False).returncode == -9
    assert (folder / ".lock").exists()
    Lock(folder).release()
    assert folder.exists(), "another's folder is not taken away"
    Lock(tmp_path / "new" / "mine").release()
    assert not (tmp_path / "new").exists()


def test_a_run_whose_only_checkpoint_is_damaged_is_not_resumed(tmp_path, monkeypatch, capfd, bring):
    monkeypatch.chdir(tmp_path)
    _flipped(tmp_path, bring)
    assert main(["train", str(TINY)]) == 2
    told = capfd.readouterr().err.strip().splitlines()[-1]
    assert "none of its 1 checkpoints is what was saved" in told
    assert "--restart" in told
    assert (tmp_path / "runs" / "tiny" / "checkpoints" / "1.damaged").is_dir()


@pytest.mark.parametrize("blocks", [0, 40], ids=["nothing fits", "no checkpoint fits"])
def test_a_full_disk_ends_a_run_with_one_paragraph(tmp_path, blocks):
    """A limit on the size of files stands in for a full disk: writing fails at the same places."""
    words = f"ulimit -f {blocks}; exec {sys.executable} -m lm train {TINY} --runs {tmp_path}/runs"
    done = subprocess.run(
        ["bash", "-c", f"{words} --tracking.tensorboard False"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert str(tmp_path / "runs") in last
    assert "--runs" in last or "room" in last
    assert not list(tmp_path.rglob("*.tmp"))
    assert not list(tmp_path.rglob("*.partial"))


def _write(folder: Path, files: Mapping[str, str | bytes]) -> None:
    changes = files.get("config.py", "")
    whole = {"config.py": CONFIG.replace("CHANGES", str(changes))}
    for name, content in {**files, **whole}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def _tree(folder: Path) -> dict[str, int]:
    """Every file and folder with its size; what Python caches aside."""
    return {
        str(path.relative_to(folder)): path.stat().st_size if path.is_file() else -1
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }
