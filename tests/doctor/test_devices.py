import jax
import pytest

from lm.doctor import devices


def names(ranks) -> str:
    return ", ".join(f"process {rank}" for rank in sorted(ranks))


def facts(**changed) -> dict:
    usual = {
        "platform": "cpu",
        "kinds": ["cpu"],
        "count": 8,
        "own": 8,
        "memory_bytes": 2**30,
        "present": [],
        "asked": None,
        "installed": {"tpu": False, "gpu": False},
    }
    return {**usual, **changed}


def judged(*told: dict):
    (check,) = devices.judge(dict(enumerate(told)), names)
    return check


def test_the_devices_of_this_process_are_told():
    told = devices.facts(jax.devices())
    assert (told["count"], told["own"], told["platform"]) == (8, 8, "cpu")
    assert told["memory_bytes"] > 0
    assert judged({**told, "present": []}).status == "ok"


@pytest.mark.parametrize(
    ("files", "kinds"),
    [
        ({}, []),
        ({"dev/accel0": ""}, ["tpu"]),
        ({"sys/bus/pci/devices/0/vendor": "0x1ae0", "sys/bus/pci/devices/0/device": "0x0063"},
         ["tpu"]),
        ({"sys/bus/pci/devices/0/vendor": "0x1ae0", "sys/bus/pci/devices/0/device": "0x0042"}, []),
        ({"dev/nvidia0": ""}, ["gpu"]),
        ({"proc/driver/nvidia/gpus/0000:01:00.0/information": "x"}, ["gpu"]),
        ({"dev/nvidiactl": ""}, []),
    ],
    ids=["none", "accel", "PCI", "a network card", "nvidia", "driver", "control alone"],
)  # fmt: skip
def test_accelerators_are_found_by_their_files(tmp_path, files, kinds):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert devices.present(tmp_path) == kinds


@pytest.mark.parametrize(("kind", "extra"), [("tpu", "'.[tpu]'"), ("gpu", "'.[gpu]'")])
def test_an_idle_accelerator_is_wrong_and_the_extra_is_named(kind, extra):
    check = judged(facts(present=[kind]))
    assert check.status == "WRONG"
    assert f"pip install -e {extra}" in check.mend


def test_an_accelerator_whose_library_is_there_is_held_by_another():
    check = judged(facts(present=["tpu"], installed={"tpu": True, "gpu": False}))
    assert check.status == "WRONG"
    assert "pip" not in check.mend


def test_the_cpu_that_was_asked_for_is_a_warning():
    check = judged(facts(present=["tpu"], asked="cpu"))
    assert check.status == "warn"
    assert "JAX_PLATFORMS" in check.mend


@pytest.mark.parametrize("changed", [{"count": 7}, {"own": 3}, {"kinds": ["TPU v4"]}])
def test_a_process_that_sees_other_devices_is_named(changed):
    check = judged(facts(), facts(), facts(**changed))
    assert check.status == "WRONG"
    assert "process 2" in check.said
    assert "process 1" not in check.said


def test_memory_that_nothing_tells_is_a_warning():
    assert judged(facts(memory_bytes=None)).status == "warn"
