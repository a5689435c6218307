import pytest

from lm.doctor import machine


def names(ranks) -> str:
    return ", ".join(f"process {rank}" for rank in sorted(ranks))


def facts(**changed) -> dict:
    usual = {
        "cores": 2,
        "load": 0.1,
        "memory_bytes": 2**34,
        "free_bytes": 2**33,
        "open_files": 65536,
        "shm_bytes": 2**33,
        "huge_pages": "madvise",
    }
    return {**usual, **changed}


def judged(*told: dict, platform: str = "cpu"):
    (check,) = machine.judge(dict(enumerate(told)), names, platform)
    return check


def test_this_host_is_read():
    told = machine.facts()
    assert told["cores"] >= 1
    assert 0 < told["free_bytes"] <= told["memory_bytes"]
    assert told["open_files"] > 0
    assert judged(told).status in ("ok", "warn")


def test_what_cannot_be_read_is_left_out(tmp_path):
    told = machine.facts(tmp_path)
    assert told["free_bytes"] is None
    assert told["shm_bytes"] is None
    assert "memory unknown" in judged(told).said


@pytest.mark.parametrize(
    ("changed", "platform", "said"),
    [
        ({"free_bytes": 2**29}, "cpu", "little memory"),
        ({"open_files": 256}, "cpu", "may be open"),
        ({"shm_bytes": 2**26}, "gpu", "/dev/shm is small"),
        ({"load": 9.0}, "cpu", "others work"),
        ({}, "tpu", "huge pages"),
    ],
)
def test_what_makes_a_host_slow_is_a_warning_that_names_it(changed, platform, said):
    quiet = facts(huge_pages="always")
    check = judged(quiet, facts(**changed), platform=platform)
    assert check.status == "warn"
    assert said in check.said
    assert "on process 1" in check.said
    assert check.mend
    assert judged(quiet, quiet, platform=platform).status == "ok"


def test_clocks_a_second_apart_are_a_warning_and_named():
    (check,) = machine.judge_clocks({1: (0.4, 0.01), 2: (-3.0, 0.01)}, names)
    assert check.status == "warn"
    assert "process 2 is 3.00 s behind" in check.said
    assert "process 1" not in check.said
    (check,) = machine.judge_clocks({1: (0.4, 0.01), 2: (1.2, 0.5)}, names)
    assert check.status == "ok", "it may as well be within a second"
