"""A search as a table, and what it advises where nothing fits."""

from lm.parallel.mesh import Mesh
from lm.plan.analytic import Estimate
from lm.plan.hardware import V5E, Slice
from lm.plan.memory import GIB
from lm.plan.ranking import GUESSES, MOST, advice, table, to_json
from lm.plan.roofline import Bound
from lm.plan.search import Candidate, Figures, Found
from lm.plan.settings import Keeping, Setting

ASKED = Slice(V5E, (4, 4), 1)


def candidate(seconds=1.0, *, data=1, fits=None, states=1.0, peak=10.0, sequences=64):
    """A guess, or with ``fits`` the compiler's answer."""
    setting = Setting(Mesh(data=data, fsdp=16 // data), Keeping("block", ("qkv",)), 1, sequences)
    bound = Bound(seconds, 0.1, 0.1, 0.0, seconds, 0.25 * seconds)
    guess = Estimate(peak * GIB, bound, GIB)
    if fits is None:
        return Candidate(setting, guess, seconds / 1000, 0.5)
    plan = {
        "fits": fits,
        "short_gib": 0.0 if fits else peak - 15.75,
        "hbm_gib": {
            "peak": peak, "limit": 15.75, "parameters": states, "optimizer": 0, "gradients": 0
        },
        "bound_seconds": {**bound._asdict(), "step": seconds if fits else None},
        "mfu_ceiling": 0.4 if fits else None,
        "tokens_per_step": 1000,
    }  # fmt: skip
    return Candidate(setting, guess, seconds / 1000, 0.5, Figures(plan, (), 1.0))


def found(*candidates):
    every = sorted(candidates, key=lambda c: c.rank)
    return Found(every, 100, 7, "nothing left is thought faster", 75.0)


def test_what_was_compiled_stands_before_guesses_and_what_does_not_fit_last():
    f = found(
        candidate(1.0), candidate(3.0, fits=True), candidate(2.0, fits=True), candidate(fits=False)
    )
    states = [row["state"] for row in to_json(f, None)["candidates"]]
    assert states == ["compiled", "compiled", "not compiled", "does not fit"]
    assert [row["step_seconds"] for row in to_json(f, None)["candidates"][:2]] == [2.0, 3.0]
    assert f.best.figures.token_seconds == 0.002


def test_a_guess_is_marked_as_one():
    lines = list(table(found(candidate(2.0, fits=True), candidate(1.0, data=2)), None))
    assert "100 settings, 7 thought too large" in lines[0]
    assert "2 compiled" not in lines[0]
    assert "~" not in lines[2]
    assert lines[2].endswith("compiled")
    assert "~1.00 s" in lines[3]
    assert "~25 %" in lines[3]


def test_the_table_is_a_screen_and_the_json_has_an_end():
    meshes = (1, 2, 4, 8, 16)
    many = [candidate(1.0 + n / 100, data=d) for n in range(40) for d in meshes]
    f = found(candidate(2.0, fits=True), *many)
    lines = list(table(f, None))
    assert len(lines) <= 3 + GUESSES
    assert max(map(len, lines)) <= 160
    assert len(to_json(f, None)["candidates"]) == MOST


def test_the_configs_own_setting_is_shown_and_marked():
    own = candidate(9.0, data=16)
    others = [candidate(1.0 + n, data=d) for n, d in enumerate((16, 1, 2, 4, 8))]
    f = found(candidate(0.5, fits=True), *others, own)
    marked = [line for line in table(f, own.setting) if "as configured" in line]
    assert len(marked) >= 1
    assert [r["as_configured"] for r in to_json(f, own.setting)["candidates"]].count(True) >= 1


def test_where_the_states_fill_the_memory_more_chips_are_advised():
    told = " ".join(advice(found(candidate(fits=False, states=12.0, peak=20.0)), ASKED))
    assert "20.00 GiB" in told
    assert "4.25 more than the 15.75" in told
    assert "more chips in the slice" in told


def test_where_rows_fill_it_more_slices_are_advised():
    told = " ".join(advice(found(candidate(fits=False, peak=20.0)), ASKED))
    assert "4 rows a device" in told
    assert "--slices 2" in told


def test_where_a_device_has_one_row_sharing_it_is_advised():
    told = " ".join(advice(found(candidate(fits=False, peak=20.0, sequences=16)), ASKED))
    assert "context or tensor" in told


def test_where_nothing_was_compiled_the_reason_can_be_had():
    refused = candidate()._replace(refused="no such kernel")
    assert "without --search" in " ".join(advice(found(refused), ASKED))
