"""metrics.jsonl: valid JSON always, cut on resume, whole or untouched."""

import json
import logging
import math

import pytest

from lm.errors import ResourceError
from lm.track.jsonl import JsonLines, cut, read


def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


def write(path, steps, *, restored_step=0):
    tracker = JsonLines(path, restored_step=restored_step)
    for step in steps:
        tracker(step, {"train/loss": 10.0 / step})
    tracker.close()


def test_lines_are_strict_json_and_read_gives_back_every_number(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tracker = JsonLines(path)
    given = {"train/loss": math.nan, "a": math.inf, "b": -math.inf, "mfu": None, "n": 3, "x": 0.1}
    tracker(7, given)
    tracker.close()
    (line,) = path.read_text().splitlines()
    written = json.loads(line, parse_constant=refuse)
    assert written["train/loss"] is None
    assert written["nonfinite"] == {"train/loss": "nan", "a": "inf", "b": "-inf"}
    (entry,) = read(path)
    assert math.isnan(entry.pop("train/loss"))
    assert entry == {"step": 7, "a": math.inf, "b": -math.inf, "mfu": None, "n": 3, "x": 0.1}


def test_a_line_is_on_the_disk_before_the_file_is_closed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tracker = JsonLines(path)
    tracker(1, {"train/loss": 2.0})
    assert [entry["step"] for entry in read(path)] == [1]
    tracker.close()
    tracker.close()


def test_resuming_drops_what_lies_beyond_the_restored_step_and_goes_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 10))
    write(path, [6, 7], restored_step=5)
    assert [entry["step"] for entry in read(path)] == [1, 2, 3, 4, 5, 6, 7]
    write(path, [1], restored_step=0)  # died before its first checkpoint
    assert [entry["step"] for entry in read(path)] == [1]


def test_cut_keeps_the_other_lines_byte_for_byte_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step":1,  "x": 1.50}\n{"step": 2, "x": 2e0}\n{"step": 3}\n')
    cut(path, 2)
    assert path.read_text() == '{"step":1,  "x": 1.50}\n{"step": 2, "x": 2e0}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]
    cut(tmp_path / "absent.jsonl", 2)
    assert not (tmp_path / "absent.jsonl").exists()


@pytest.mark.parametrize("torn", ['{"step": 3, "tra', "{", '{"step": 3}\x00'])
def test_a_torn_last_line_is_ignored_and_never_glued_to_the_next(tmp_path, torn, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n' + torn)
    with caplog.at_level(logging.WARNING):
        assert [entry["step"] for entry in read(path)] == [1, 2]
    assert not caplog.records
    write(path, [3], restored_step=2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_a_whole_last_line_without_its_end_is_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    write(path, [3], restored_step=2)
    assert [entry["step"] for entry in read(path)] == [1, 2, 3]


def test_a_damaged_line_within_is_left_out_with_a_warning_that_names_it(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nrubbish\n[4]\n{"step": 2}\n')
    with caplog.at_level(logging.WARNING):
        assert [entry["step"] for entry in read(path)] == [1, 2]
    assert ["line 2" in r.getMessage() or "line 3" in r.getMessage() for r in caplog.records] == [
        True,
        True,
    ]


def test_a_file_that_cannot_be_written_is_the_users_to_mend(tmp_path):
    with pytest.raises(ResourceError, match=r"missing.*metrics\.jsonl: cannot be written"):
        JsonLines(tmp_path / "missing" / "metrics.jsonl")
