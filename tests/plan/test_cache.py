"""What was planned before, by content."""

import json

import pytest

import lm.plan.cache as cache
from lm.plan.cache import Cache, default_folder, key_of, source_digest
from lm.plan.hardware import V5E, Slice

ASKED = Slice(V5E, (4, 4), 1)
KEY = "a" * 8


def test_an_entry_is_given_back(tmp_path):
    Cache(tmp_path / "new").put(KEY, {"plan": [1, 2]})
    assert Cache(tmp_path / "new").get(KEY) == {"plan": [1, 2]}
    assert [p.name for p in (tmp_path / "new").iterdir()] == [f"{KEY}.json"]


@pytest.mark.parametrize(
    "text", ["", '{"key": "aaaaaaaa", "entr', "[]", "{}", '{"key": "b", "entry": {}}', "\0"]
)
def test_a_torn_or_foreign_entry_is_none_and_is_made_again(tmp_path, text):
    (tmp_path / f"{KEY}.json").write_text(text)
    kept = Cache(tmp_path)
    assert kept.get(KEY) is None
    kept.put(KEY, {"whole": True})
    assert kept.get(KEY) == {"whole": True}


def test_without_a_folder_nothing_is_kept():
    Cache(None).put(KEY, {"plan": 1})
    assert Cache(None).get(KEY) is None


def test_a_folder_that_cannot_be_made_costs_only_the_memory(tmp_path):
    (tmp_path / "file").write_text("")
    kept = Cache(tmp_path / "file" / "below")
    kept.put(KEY, {"plan": 1})
    assert kept.get(KEY) is None


def test_the_key_follows_what_the_answer_depends_on_and_not_the_name(monkeypatch):
    e = {"name": "one", "training": {"length": 64}}
    key = key_of(e, ASKED)
    assert key_of({**e, "name": "two"}, ASKED) == key
    others = [
        key_of({**e, "training": {"length": 65}}, ASKED),
        key_of(e, ASKED._replace(shape=(4, 8))),
        key_of(e, ASKED._replace(slices=2)),
        key_of(e, ASKED, compiles=3),
    ]
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_something=true")
    others.append(key_of(e, ASKED))
    monkeypatch.delenv("LIBTPU_INIT_ARGS")
    monkeypatch.setattr(cache, "versions", lambda: {"jax": "another"})
    others.append(key_of(e, ASKED))
    monkeypatch.undo()
    monkeypatch.setattr(cache, "own_source", lambda: "edited")
    others.append(key_of(e, ASKED))
    assert len({key, *others}) == 8


def test_an_edited_renamed_or_new_source_file_has_another_digest(tmp_path):
    (tmp_path / "a.py").write_text("x = 1")
    (tmp_path / "notes.txt").write_text("free")
    first = source_digest(tmp_path)
    (tmp_path / "notes.txt").write_text("changed")
    assert source_digest(tmp_path) == first
    seen = {first}
    (tmp_path / "a.py").write_text("x = 2")
    seen.add(source_digest(tmp_path))
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    seen.add(source_digest(tmp_path))
    (tmp_path / "c.py").write_text("")
    seen.add(source_digest(tmp_path))
    assert len(seen) == 4


def test_the_folder_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "lm" / "plans"


def test_entries_are_json_that_other_tools_read(tmp_path):
    Cache(tmp_path).put(KEY, {"plan": {"fits": True}})
    told = json.loads((tmp_path / f"{KEY}.json").read_text())
    assert told["entry"]["plan"]["fits"] is True
