import itertools

import pytest

from lm.errors import ConfigError, CorpusError
from lm.tokenizers.load import load_tokenizer
from lm.tokenizers.training import fit_tokenizer, sample, train_tokenizer


@pytest.mark.parametrize(("kind", "size"), [("sentencepiece", 360), ("bpe", 320)])
def test_training_twice_gives_the_same_tokenizer(verse, kind, size):
    texts = [verse, verse * 3]
    assert fit_tokenizer(kind, texts, size).digest == fit_tokenizer(kind, texts, size).digest


@pytest.mark.parametrize(("kind", "size"), [("sentencepiece", 360), ("bpe", 320)])
def test_vocabulary_has_the_size_asked_for(verse, kind, size):
    assert fit_tokenizer(kind, [verse * 5], size).vocab_size == size


@pytest.mark.parametrize("kind", ["sentencepiece", "bpe", "characters"])
@pytest.mark.parametrize("size", [3, 100_000])
def test_impossible_size_says_the_range(verse, kind, size):
    with pytest.raises(ConfigError, match=rf"vocab_size: {size} .*\d+"):
        fit_tokenizer(kind, [verse], size)


@pytest.mark.parametrize("kind", ["sentencepiece", "bpe"])
def test_the_range_that_is_said_is_true(verse, kind):
    with pytest.raises(ConfigError) as error:
        fit_tokenizer(kind, [verse], 100_000)
    most = int(str(error.value).split(" most ")[-1].split(" and ")[-1].split(".")[0])
    assert fit_tokenizer(kind, [verse], most).vocab_size == most
    with pytest.raises(ConfigError):
        fit_tokenizer(kind, [verse], most + 1)


def test_least_size_that_is_said_is_true(verse):
    with pytest.raises(ConfigError) as error:
        fit_tokenizer("sentencepiece", [verse], 3)
    least = int(str(error.value).split(" need ")[1].split(".")[0])
    assert fit_tokenizer("sentencepiece", [verse], least + 1).vocab_size == least + 1
    with pytest.raises(ConfigError):
        fit_tokenizer("sentencepiece", [verse], least - 1)


def test_bytes_take_no_size(verse):
    with pytest.raises(ConfigError, match="always 259"):
        fit_tokenizer("bytes", [verse], 300)
    assert fit_tokenizer("bytes", [verse], 259).vocab_size == 259


@pytest.mark.parametrize("kind", ["sentencepiece", "bpe"])
def test_learned_kinds_need_a_size(verse, kind):
    with pytest.raises(ConfigError, match="--vocab-size"):
        fit_tokenizer(kind, [verse], None)


@pytest.mark.parametrize("kind", ["sentencepiece", "bpe", "characters"])
@pytest.mark.parametrize("texts", [[], [""]])
def test_no_text_is_told(kind, texts):
    with pytest.raises(CorpusError, match="empty"):
        fit_tokenizer(kind, texts, 300)


def test_fewer_characters_keep_the_commonest():
    tokenizer = fit_tokenizer("characters", ["aaabbbccd"], 4 + 3)
    assert tokenizer.decode(tokenizer.encode("abcd")) == "abc\ufffd"


def test_text_the_trainer_cannot_take_is_no_hindrance():
    """Lines beyond its limit, its reserved characters, and a word of 70,000 letters."""
    text = "a word and a word " * 2000 + "\tx\x00▅\x01\n" + "lo" * 35_000 + "\n" + "end. " * 50
    tokenizer = fit_tokenizer("sentencepiece", [text], 290)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("a word and a word ")) < 12


def test_used_folder_is_refused_and_left_alone(tmp_path, verse):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(CorpusError, match="not empty"):
        train_tokenizer("bytes", [verse], None, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_failed_training_leaves_nothing(tmp_path, verse):
    with pytest.raises(ConfigError):
        train_tokenizer("bpe", [verse], 10, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_trained_folder_loads(tmp_path, verse):
    made = train_tokenizer("characters", [verse], None, tmp_path / "deep" / "out")
    assert load_tokenizer(tmp_path / "deep" / "out").digest == made.digest
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["out"]


def test_sample_is_evenly_spread_and_bounded():
    chunks = [f"{i:04d}" for i in range(1000)]
    kept = sample(chunks, 400)
    assert sum(map(len, kept)) <= 400
    steps = {int(b) - int(a) for a, b in itertools.pairwise(kept)}
    assert len(steps) == 1
    assert int(kept[-1]) >= 1000 - 2 * steps.pop()
    assert sample(chunks, 4000) == chunks
