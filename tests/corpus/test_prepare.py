import json
from dataclasses import replace

import pytest

from lm.config import from_plain, to_plain
from lm.corpus.prepare import Prepare, TrainTokenizer, prepare, prepared_folder
from lm.corpus.split import Tail
from lm.errors import ConfigError, CorpusError
from lm.shards import open_documents, read_manifest
from lm.tokenizers.bytes import Bytes
from lm.tokenizers.load import load_tokenizer


@pytest.fixture
def config(tmp_path) -> Prepare:
    path = tmp_path / "in.jsonl"
    records = [{"id": f"d{i}", "text": f"one line {i}\n" * 9} for i in range(6)]
    records.append({"id": "secret", "text": "Ω" * 99})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return Prepare(
        sources=(str(path),),
        tokenizer=TrainTokenizer(algorithm="characters"),
        held_out=("secret",),
        folder=str(tmp_path / "data"),
    )


def test_tokenizer_never_sees_what_is_held_out(config):
    tokenizer = load_tokenizer(prepare(config).tokenizer)
    assert tokenizer.encode("Ω") == [tokenizer.special.unknown]
    assert tokenizer.decode(tokenizer.encode("one line 3\n")) == "one line 3\n"


def test_whole_result_is_reused(config):
    said: list[str] = []
    folder = prepare(config, said.append).folder
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert folder == prepared_folder(config)
    assert prepare(config, said.append).folder == folder
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    assert "prepared before" in said[-1]


@pytest.mark.parametrize("damage", ["manifest.json", "train-00000.tokens", "tokenizer"])
def test_result_that_is_not_whole_is_made_again(config, damage):
    folder = prepare(config).folder
    manifest = read_manifest(folder)
    (folder / damage).rename(folder / "lost")
    assert prepare(config).folder == folder
    assert read_manifest(folder) == manifest
    open_documents(folder, "train")
    assert not (folder / "lost").exists()


def test_folder_follows_inputs_and_settings(config, tmp_path):
    folders = {
        prepared_folder(c)
        for c in (
            config,
            replace(config, held_out=0.3),
            replace(config, held_out=Tail(fraction=0.3)),
            replace(config, tokenizer=Bytes()),
            replace(config, tokenizer=TrainTokenizer(vocab_size=300)),
        )
    }
    with (tmp_path / "in.jsonl").open("a") as file:
        file.write('{"text": "more"}\n')
    folders.add(prepared_folder(config))
    assert len(folders) == 6


def test_folder_is_found_without_making_anything(config, tmp_path):
    prepared_folder(config)
    assert not (tmp_path / "data").exists()


def test_given_tokenizer_is_used_as_it_is(config):
    folder = prepare(replace(config, tokenizer=Bytes())).folder
    assert read_manifest(folder).tokenizer.digest == Bytes().build().digest


def test_failure_leaves_nothing(config, tmp_path):
    with pytest.raises(CorpusError, match="no document is named"):
        prepare(replace(config, held_out=("secre",)))
    with pytest.raises(ConfigError, match="vocab_size"):
        prepare(replace(config, tokenizer=TrainTokenizer(vocab_size=100_000)))
    assert not (tmp_path / "data").exists()


def test_config_survives_json(config):
    for choice in (("a",), 0.1, Tail(fraction=0.1)):
        changed = replace(config, held_out=choice)
        assert from_plain(Prepare, to_plain(changed)) == changed


def test_wrong_settings_are_refused():
    with pytest.raises(ConfigError, match="needs one"):
        TrainTokenizer(algorithm="bpe")
    with pytest.raises(ConfigError, match="sentencepiece"):
        from_plain(TrainTokenizer, {"algorithm": "sentencepeice", "vocab_size": 300})
