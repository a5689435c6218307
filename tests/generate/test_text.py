"""Texts: stop strings, streaming, and what is told of each."""

from collections.abc import Sequence
from typing import Any

import pytest

from lm.errors import ConfigError
from lm.generate import text as texts
from lm.generate.decode import Generated
from lm.generate.sampling import GREEDY
from lm.generate.text import Writer, bounds_of, complete
from lm.tokenizers.bytes import ByteTokenizer
from tests.generate.conftest import LENGTH, Built

TOKENIZER = ByteTokenizer()


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``complete`` for a model that says what the test wants, token by token."""

    def run(lines: Sequence[bytes], stop: Sequence[str] = (), *, stream: bool = True) -> Any:
        def scripted(*_: Any, on_token: Any, **__: Any) -> list[Generated]:
            results: list[Generated] = []
            for number, line in enumerate(lines):
                ids: list[int] = []
                ended = "eos"
                for token in line:
                    ids.append(token)
                    if on_token is not None and on_token(number, token):
                        ended = "stop"
                        break
                results.append(Generated(ids, ended))
            return results

        monkeypatch.setattr(texts, "generate", scripted)
        heard: list[list[str]] = [[] for _ in lines]
        done = complete(
            Writer(None, {}, TOKENIZER, None),  # pyright: ignore[reportArgumentType]
            ["The prompt: "] * len(lines),
            max_tokens=99,
            sampler=GREEDY,
            stop=stop,
            on_text=(lambda number, text: heard[number].append(text)) if stream else None,
        )
        if stream:
            assert ["".join(pieces) for pieces in heard] == [c.text for c in done]
        return done, heard

    return run


@pytest.mark.parametrize(
    ("line", "stop", "text", "stopped_by"),
    [
        ("one two three", ["two"], "one ", "stop"),
        ("one two three", ["three", "two"], "one ", "stop"),
        ("one two three", ["four"], "one two three", "eos"),
        ("ends with a beginning of the st", ["stop"], "ends with a beginning of the st", "eos"),
        ("aab", ["aaab", "ab"], "a", "stop"),
        ("aaab", ["aab"], "a", "stop"),
        ("drei Äpfel", ["Äp"], "drei ", "stop"),
        ("stop", ["stop"], "", "stop"),
        ("a line\n\nthe next", ["\n\n"], "a line", "stop"),
        ("anything", [], "anything", "eos"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_text_ends_before_the_first_stop_string(
    line: str, stop: list[str], text: str, stopped_by: str, stream: bool, say: Any
) -> None:
    (found,), _ = say([line.encode()], stop, stream=stream)
    assert (found.text, found.stopped_by) == (text, stopped_by)
    assert found.prompt == "The prompt: "


def test_nothing_of_a_stop_string_is_streamed_and_nothing_else_held_back(say: Any) -> None:
    _, heard = say([b"so stay, then stop here"], ["stop"])
    assert heard == [["so", " ", "sta", *"y, then "]]


def test_streams_of_several_prompts_do_not_mix(say: Any) -> None:
    done, _ = say([b"first", "zwölf".encode(), b""], ["x"])
    assert [c.text for c in done] == ["first", "zwölf", ""]


def test_part_of_a_character_is_never_streamed_but_reported_at_the_end(say: Any) -> None:
    _, heard = say(["ö".encode() + "ü".encode()[:1]])
    assert heard == [["ö", "\ufffd"]]


def test_an_empty_stop_string_is_refused(say: Any) -> None:
    with pytest.raises(ConfigError, match="stop"):
        say([b"x"], [""])


def test_special_ids_are_never_drawn_but_eos() -> None:
    assert bounds_of(TOKENIZER, 9) == (259, 257, (256, 258), 9)


def test_a_model_writes_the_same_whether_streamed_or_not(models: dict[str, Built]) -> None:
    model, params, context = models["gpt2"]
    writer = Writer(model, params, TOKENIZER, context)
    heard: dict[int, str] = {0: "", 1: ""}

    def on_text(number: int, text: str) -> None:
        heard[number] += text

    prompts = ["", "To be, or not"]
    plain = complete(writer, prompts, max_tokens=60, sampler=GREEDY)
    streamed = complete(writer, prompts, max_tokens=60, sampler=GREEDY, on_text=on_text)
    assert plain == streamed
    assert heard == {0: plain[0].text, 1: plain[1].text}
    assert plain[1].stopped_by == "context"
    assert len(plain[1].ids) == LENGTH + 1 - len("To be, or not") - 1
    with pytest.raises(ConfigError, match="prompt 1 has 61 tokens"):
        complete(writer, ["x" * 60], max_tokens=1, sampler=GREEDY)
