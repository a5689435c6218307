"""kill -9 in the middle of a save: what is listed afterwards is whole, and the rest is cleared."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lm.checkpoint import layout

pytestmark = [pytest.mark.faults, pytest.mark.slow]  # each test starts processes that load JAX

POINTS = {
    "while the arrays are written": ("arrays", [1, 2]),
    "when the arrays are there": ("finalize", [1, 2]),
    "before the digests": ("digests.json", [1, 2]),
    "between save and commit": ("3", [1, 2]),
    "after the commit": ("after 3", [1, 2, 3]),
    "before an old step is deleted": ("1.deleting", [1, 2, 3]),
    "while an old step is deleted": ("after 1.deleting", [2, 3]),
    "in the middle of an old step": ("rmtree", [2, 3]),
}


def run(folder, point):
    command = [sys.executable, "-m", "tests.checkpoint.test_kills", str(folder), point]
    root = Path(__file__).parents[2]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, cwd=root
    )


@pytest.mark.parametrize("when", POINTS)
def test_after_a_kill_the_whole_steps_are_listed_and_the_next_start_clears_the_rest(when, tmp_path):
    point, whole = POINTS[when]
    folder = tmp_path / "checkpoints"
    done = run(folder, point)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [int(step.name) for step in layout.steps(folder)] == whole
    done = run(folder, "none")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"restored {whole[-1]}"
    assert sorted(path.name for path in folder.iterdir()) == ["3", "4"]


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point):
    """From now on the process dies at the point."""
    import orbax.checkpoint as ocp

    from lm.checkpoint import store

    replace, rmtree = os.replace, shutil.rmtree

    def replacing(source, target):
        if point == Path(target).name:
            die()
        replace(source, target)
        if point == f"after {Path(target).name}":
            die()

    def removing(path, **options):
        if point == "rmtree" and Path(path).name == "1.deleting":
            (Path(path) / "digests.json").unlink()
            die()
        rmtree(path, **options)

    os.replace, shutil.rmtree = replacing, removing
    if point == "finalize":
        ocp.PyTreeCheckpointHandler.finalize = die
    if point == "arrays":
        store.own_sums = die  # which comes while Orbax writes


def main(folder: Path, point: str) -> None:
    from lm.checkpoint.saving import Saving
    from lm.checkpoint.store import open_store
    from tests.checkpoint.states import abstract, bits, make_state, save

    with open_store(folder, Saving(keep=2)) as store:
        if store.latest():
            found = store.restore_newest(abstract(make_state(1)))
            assert bits(found.state) == bits(make_state(found.step))
            print(f"restored {found.step}")
        for step in (1, 2, 3, 4):
            if step == 3:
                store.wait()
                arm(point)
            if step > (store.latest() or 0):
                save(store, step, make_state(step))


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    main(Path(sys.argv[1]), sys.argv[2])
