"""Files that rot, vanish or change places: noticed, named, set aside, and never used.

A flipped bit counts as survived if the checkpoint is refused and named, or if every bit of the
state and of the data position that was restored is what was saved: large files may hold bytes that
nobody reads.
"""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lm.checkpoint.restore import restore_newest
from lm.checkpoint.saving import Saving
from lm.checkpoint.store import open_store
from tests.checkpoint.test_store import abstract, bits, make_state, save
from tests.end_to_end.conftest import digests, start
from tests.faults.battery import Bench, assert_same

pytestmark = pytest.mark.faults

STEPS = 33
OPTIONS = ("--training.steps", str(STEPS), "--saving.every", "1", "--evaluation.every", "100")


def flip(file: Path, bit: int) -> None:
    raw = bytearray(file.read_bytes())
    raw[bit // 8] ^= 1 << bit % 8
    file.write_bytes(raw)


def files(step: Path) -> list[Path]:
    return sorted(path for path in step.rglob("*") if path.is_file() and path.stat().st_size)


def copied(bench: Bench, name: str) -> Path:
    """A copy of the undisturbed run, as if it had been killed before its last save."""
    shutil.copytree(bench.run("whole"), bench.run(name))
    shutil.copytree(bench.notes("whole"), bench.notes(name))
    shutil.rmtree(bench.run(name) / "checkpoints" / str(STEPS))
    return bench.run(name) / "checkpoints"


@pytest.fixture(scope="module")
def bench(compiled, tmp_path_factory) -> Bench:
    """With an undisturbed run that saved every step."""
    made = Bench(folder=tmp_path_factory.mktemp("rot"), compiled=compiled, options=OPTIONS)
    made.finish("whole")
    return made


def assert_flips_are_noticed(bench: Bench, processes: int, count: int) -> None:
    """So many checkpoints, another file of each: the run goes on from the one before them."""
    saves = copied(bench, "flipped")
    draw = random.Random(30)
    flipped = {}
    for number, step in enumerate(range(STEPS - count, STEPS)):
        every = [
            file.relative_to(saves / str(step)).as_posix() for file in files(saves / str(step))
        ]
        # Those with a name of their own, the same in every checkpoint, then the arrays' data.
        named = [name for name in every if "/d/" not in name]
        data = [name for name in every if "/d/" in name]
        names = named + data * count
        name = flipped[step] = names[number]
        file = saves / str(step) / name
        flip(file, draw.randrange(file.stat().st_size * 8))
    assert set(named) <= set(flipped.values())
    assert {"data.json", "experiment.json", "record.json", "digests.json"} <= set(named)
    assert {f"state/ocdbt.process_{rank}/manifest.ocdbt" for rank in range(processes)} <= set(named)
    said = bench.finish("flipped", processes=processes)
    assert f"resuming at step {STEPS - count - 1}" in said
    for step, name in flipped.items():
        told = [line for line in said.splitlines() if f"checkpoints/{step}:" in line]
        assert told, (step, name, said)
        if name != "digests.json":
            assert f"file {name}" in told[0]
            assert (saves / f"{step}.damaged").is_dir()
    assert_same(bench, "flipped", "whole")
    assert digests(bench.run("flipped")) == digests(bench.run("whole"))


@pytest.mark.slow  # starts runs
def test_one_flipped_bit_in_each_of_thirty_files_is_noticed_and_named(bench):
    assert_flips_are_noticed(bench, processes=1, count=30)


@pytest.mark.slow  # starts runs
@pytest.mark.multiprocess
def test_two_processes_notice_one_flipped_bit_in_each_of_many_files(compiled, tmp_path):
    bench = Bench(folder=tmp_path, compiled=compiled, devices=4, data_axis=2, options=OPTIONS)
    bench.finish("whole", processes=2)
    assert_flips_are_noticed(bench, processes=2, count=16)


def data_file(step: Path) -> Path:
    """The largest file of a state: it holds leaves."""
    return max(files(step / "state"), key=lambda path: path.stat().st_size)


def cut(part: float) -> Callable[[Path], None]:
    def damage(step: Path) -> None:
        file = data_file(step)
        raw = file.read_bytes()
        file.write_bytes(raw[: int(len(raw) * part)])

    return damage


def missing(name: str) -> Callable[[Path], None]:
    def damage(step: Path) -> None:
        path = data_file(step) if name == "DATA" else step / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def of_the_step_before(name: str) -> Callable[[Path], None]:
    def damage(step: Path) -> None:
        other = step.with_name(str(int(step.name) - 1)) / name
        if other.is_dir():
            shutil.rmtree(step / name)
            shutil.copytree(other, step / name)
        else:
            shutil.copy(other, step / name)

    return damage


def exchanged(step: Path) -> None:
    """Two files with leaves have changed names."""
    one, two = sorted(files(step / "state"), key=lambda path: path.stat().st_size)[-2:]
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)


def longer(step: Path) -> None:
    with data_file(step).open("ab") as file:
        file.write(b"\0")


DAMAGES: tuple[Callable[[Path], None], ...] = (
    missing("digests.json"),
    missing("state"),
    cut(0.5),
    cut(0.0),
    longer,
    exchanged,
    missing("DATA"),
    missing("data.json"),
    missing("experiment.json"),
    missing("tokenizer"),
    missing("state/_METADATA"),
    missing("state/manifest.ocdbt"),
    missing("state/ocdbt.process_0"),
    of_the_step_before("data.json"),
    of_the_step_before("digests.json"),
    of_the_step_before("state"),
    of_the_step_before("state/manifest.ocdbt"),
)
"""From the newest checkpoint on down; a whole checkpoint comes after them."""


@pytest.mark.slow  # starts a run
def test_truncated_missing_and_swapped_files_are_noticed_and_named(bench):
    saves = copied(bench, "damaged")
    damaged = range(STEPS - 1, STEPS - 1 - len(DAMAGES), -1)
    # The oldest last: what is taken from the step before must be what was saved there.
    for step, damage in zip(damaged, DAMAGES, strict=True):
        damage(saves / str(step))
    said = bench.finish("damaged")
    assert f"resuming at step {damaged[-1] - 1}" in said
    for step in damaged:
        assert f"checkpoints/{step}:" in said, (step, said)
    assert_same(bench, "damaged", "whole")
    assert digests(bench.run("damaged")) == digests(bench.run("whole"))
    # What was set aside is named by the verb, too.
    aside = saves / f"{damaged[2]}.damaged"
    verifying = start(["inspect", aside, "--verify"], bench.folder)
    told, _ = verifying.communicate(timeout=120)
    assert verifying.returncode == 2
    assert f"file state/{data_file(aside).relative_to(aside / 'state')}" in told


@pytest.mark.slow  # starts a run
def test_two_checkpoints_that_changed_names_are_not_taken_for_each_other(bench):
    saves = copied(bench, "renamed")
    one, two = saves / str(STEPS - 1), saves / str(STEPS - 2)
    one.rename(saves / "other")
    two.rename(one)
    (saves / "other").rename(two)
    bench.finish("renamed")
    assert_same(bench, "renamed", "whole")


@pytest.mark.slow  # starts a run
def test_a_run_whose_own_experiment_rotted_goes_on_by_its_checkpoints(bench):
    copied(bench, "experiment")
    file = bench.run("experiment") / "experiment.json"
    flip(file, 8 * file.read_text().index('"model"') + 1)  # a quotation mark becomes a space
    said = bench.finish("experiment")
    assert str(file) in said
    assert_same(bench, "experiment", "whole")


def restored_or_refused(run: Path, step: int, states: dict) -> bool:
    """Whether the newest step was refused; what was restored instead is what was saved."""
    found = restore_newest(run, abstract(states[step]))
    assert found is not None
    assert found.data["position"] == found.step
    assert bits(found.state) == bits(states[found.step])
    if found.step == step:
        return False
    assert str(run / str(step)) in " ".join(found.messages)
    return True


@pytest.fixture
def two_saves(tmp_path):
    """Two checkpoints with files of more than 1 MiB; their states by step."""
    states = {step: make_state(step, width=512) for step in (1, 2)}
    with open_store(tmp_path, Saving(keep=9)) as store:
        for step, state in states.items():
            save(store, step, state, position=step)
    return states


def flips(run: Path, file: Path, states: dict, places: list[int]) -> int:
    """Flip each bit in turn, and back; how many of them were noticed."""
    noticed = 0
    good = file.read_bytes()
    for bit in places:
        flip(file, bit)
        noticed += restored_or_refused(run, 2, states)
        for aside in run.glob("2.damaged*"):
            aside.rename(run / "2")
        file.write_bytes(good)
    return noticed


def test_a_bit_flipped_in_a_large_file_is_noticed_or_nobody_reads_it(two_saves, tmp_path):
    """Files over 1 MiB have no digest of their own: the leaves in them have."""
    file = data_file(tmp_path / "2")
    assert file.stat().st_size > 2**20
    draw = random.Random(1)
    places = [draw.randrange(file.stat().st_size * 8) for _ in range(30)]
    ends = [0, 7, file.stat().st_size * 8 - 1]
    assert flips(tmp_path, file, two_saves, places + ends) >= 25


def test_a_bit_flipped_in_the_digests_is_noticed_or_changes_nothing(two_saves, tmp_path):
    """What vouches for all else may rot as well."""
    file = tmp_path / "2" / "digests.json"
    draw = random.Random(2)
    places = [draw.randrange(file.stat().st_size * 8) for _ in range(100)]
    assert flips(tmp_path, file, two_saves, places) == len(places)
