"""The report: loads nothing, tells the figures, and bears with whatever is missing."""

import json
import math
from html.parser import HTMLParser

import pytest

from lm.errors import CheckpointError
from lm.track.jsonl import line
from lm.track.report import charts_of, gather, headline, write_report

LOADING = {"src", "href", "xlink:href", "srcset", "action", "data", "poster", "background"}


class Page(HTMLParser):
    """What of a page matters here: what it would load, its charts, its text."""

    def __init__(self, text: str):
        super().__init__()
        self.loads, self.charts, self.tags, self.said = [], [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        given = dict(attrs)
        self.loads += [(tag, name) for name in LOADING & given.keys()]
        if "data-chart" in given:
            self.charts.append(json.loads(given["data-chart"]))

    def handle_data(self, data):
        self.said += data


@pytest.fixture
def run(tmp_path):
    """A run of 300 steps with held-out results every 100, a checkpoint and samples."""
    folder = tmp_path / "toy"
    for step in (9, 300):
        (folder / "checkpoints" / str(step)).mkdir(parents=True)
        record = {"step": step, "tokens": step * 512, "parameters": 1_240_320, "commit": f"c{step}"}
        record["versions"] = {"jax": "0.10.2"}
        (folder / "checkpoints" / str(step) / "record.json").write_text(json.dumps(record))
    lines = []
    for step in range(1, 301):
        told = {"train/loss": 2 + 5 / step, "train/learning_rate": 1e-3, "time/step_seconds": 0.5}
        told |= {"train/gradient_norm": math.nan if step == 7 else 1.0}
        told |= {"throughput/tokens_per_second": 1024.0, "throughput/mfu_causal": None}
        lines.append(line(step, told))
        if step % 100 == 0:
            loss = {100: 3.0, 200: 2.5, 300: 2.75}[step]
            told = {"loss": loss, "perplexity": math.exp(loss), "bits_per_byte": loss / 2}
            lines.append(line(step, {f"eval/plays/{k}": v for k, v in told.items()}))
    (folder / "metrics.jsonl").write_text("".join(lines))
    (folder / "experiment.json").write_text('{"kind": "Experiment", "name": "toy <&> name"}')
    samples = [{"prompt": "KING:", "text": "KING: </script><b>speak & be</b>"}]
    (folder / "samples.json").write_text(json.dumps(samples))
    return folder


def test_the_page_stands_alone_and_is_well_formed(run):
    text = write_report(run).read_text(encoding="utf-8")
    page = Page(text)
    assert page.loads == []
    assert not {"link", "img", "iframe", "object", "embed", "base"} & set(page.tags)
    assert "http://" not in text
    assert "https://" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert page.tags.count("script") == text.count("</script>") == 1
    assert [p.name for p in run.glob("report*")] == ["report.html"]


def test_text_from_the_run_is_shown_and_never_interpreted(run):
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert "KING: </script><b>speak & be</b>" in page.said  # the prompt once, not twice
    assert "toy <&> name" in page.said


def test_headline_tells_the_best_held_out_result_and_the_newest_record(run):
    tiles = {what: (value, remark) for what, value, remark in headline(gather(run))}
    assert tiles["Held-out loss"] == ("2.5", "best, step 200")
    assert tiles["Bits per byte"] == ("1.25", "best, step 200")
    assert tiles["Perplexity"] == ("12.18", "best, step 200")
    assert tiles["Parameters"] == ("1.24 M", "1 240 320")
    assert tiles["Tokens"] == ("154 k", "in 300 steps")
    assert tiles["Tokens a second"] == ("1.02 k", "median step")
    assert tiles["Time"][0] == "2 min 30 s"
    assert not any("MFU" in what for what in tiles)  # null throughout
    (run / "summary.json").write_text('{"tokens": 2000000, "seconds": 61.2}')
    tiles = {what: value for what, value, _ in headline(gather(run))}
    assert (tiles["Tokens"], tiles["Time"]) == ("2.00 M", "1 min 1 s")


def test_curves_hold_the_values_and_nothing_that_is_not_finite(run):
    page = Page(write_report(run).read_text(encoding="utf-8"))
    loss, rate, norm, *_ = page.charts
    train, held_out = loss["curves"]
    assert held_out["points"] == [[100, 3.0], [200, 2.5], [300, 2.75]]
    assert train["points"][0] == [1, pytest.approx(7, rel=0.4)]
    assert all(value == 1e-3 for _, value in rate["curves"][0]["points"])
    assert 7 not in [step for step, _ in norm["curves"][0]["points"]]
    assert "1 values were not finite" in page.said


def test_a_step_told_twice_counts_once():
    metrics = [{"step": 1, "train/loss": 5.0}, {"step": 1, "train/loss": 4.0}]
    (curve,) = charts_of(metrics)[0].curves
    assert curve.series.y.tolist() == [4.0]


def test_an_empty_run_still_has_a_page(tmp_path):
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "No values yet" in page.said
    assert "Nothing has been measured yet" in page.said
    assert page.charts == []


@pytest.mark.parametrize(
    "name", ["experiment.json", "samples.json", "summary.json", "checkpoints/300/record.json"]
)
@pytest.mark.parametrize("content", ["{ torn", "null", "[1]", '{"versions": 3, "model": "x"}'])
def test_a_strange_file_only_leaves_out_what_it_would_have_told(run, name, content):
    (run / name).write_text(content)
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert len(page.charts) == 5
    assert "Held-out loss" in page.said


@pytest.mark.parametrize("steps", [1, 2, 12])
def test_a_run_of_a_few_steps_is_drawn(tmp_path, steps):
    lines = [line(s, {"train/loss": 5.0, "train/learning_rate": 0.0}) for s in range(1, steps + 1)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert [len(c["curves"][0]["points"]) for c in page.charts] == [steps, steps]


def test_a_missing_run_is_the_users_to_mend(tmp_path):
    with pytest.raises(CheckpointError, match="no such run"):
        write_report(tmp_path / "absent")
