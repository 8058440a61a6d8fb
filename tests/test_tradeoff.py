"""The sweep's fits against closed forms and known truths, and its page against a real browser and plain Python."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from scipy import stats

from distill_jax.reports import sweep_page
from distill_jax.reports.rendering import clean, write_page
from distill_jax.statistics import fits
from tests.test_report import HOSTILE, Page, browse

Run = dict[str, Any]
STEPS = [0, 10, 40, 100]
FIGURES = ["compute", "heldout", "relearned", "kept", "grid-heldout", "grid-retain", "accuracies", "steps", "sizes"]
LABELS = {"maxent": "MaxEnt", "graddiff": "GradDiff", "rmu": "RMU", None: "nothing"}


def run(kind: str, method: str | None, alpha: float | None, beta: float | None, seed: int, **changes: Any) -> Run:
    """Return a made-up run whose numbers look like a real one's: robustness and compute rise with alpha."""
    parameters = changes.get("parameters", 140_000)
    rng = np.random.default_rng([seed, parameters, *f"{kind}{method}{alpha}{beta}".encode()])
    damage = 0.0 if alpha is None else alpha
    end = {"oracle": 0.07, "reference": 0.94, "random student": 0.09}.get(kind, 0.65 - 0.58 * damage)
    end = float(np.clip(end + (0.12 if method == "rmu" else 0) + rng.normal(0, 0.02), 0, 1))
    share = {"oracle": 1.0, "random student": 0.67, "suppressed": 0.08, "reference": 0.0}.get(
        kind, 0.1 + 0.4 * damage**2
    )
    share *= (1 + rng.normal(0, 0.05)) * (1 + (beta or 0))
    steps = int(60 + 900 * damage**2 * (1 + (beta or 0)) + rng.integers(0, 40))
    flops = {"student": 6e12 * share, "teacher": 2e12 * share, "evaluation": 1e12, "attack": 3e12}
    flops = {part: value * (parameters / 140_000) ** 2 for part, value in flops.items()}
    curve = [end * (1 - math.exp(-step / 40)) / (1 - math.exp(-2.5)) for step in STEPS]
    words = {"undo": f"UNDO α = {alpha}, β = {beta} of {LABELS.get(method)}"}.get(
        kind, f"{kind} of {LABELS.get(method)}"
    )
    made = {
        "id": f"{kind.replace(' ', '-')}-{method}-{alpha}-{beta}-{seed}-{parameters}", "label": words, "kind": kind,
        "method": method, "alpha": alpha, "beta": beta, "seed": seed, "parameters": parameters,
        "retain": float(np.clip(0.89 + rng.normal(0, 0.01) - (0.08 if damage > 0.9 else 0), 0, 1)),
        "forget": 0.93 if kind == "reference" else 0.01 + 0.02 * float(rng.random()), "steps": steps, "max_steps": 2400,
        "recovered": True if kind in fits.DISTILLED else None, "diverged": False,
        "attack": {
            "steps": STEPS, "forget_heldout": curve, "forget_shown": [min(1.0, 1.4 * y) for y in curve],
            "retain_at_worst": [0.89 - 0.3 * end * step / 100 for step in STEPS], "members": 10, "diverged": 0,
        },
        "compute": {how: {part: value / n for part, value in flops.items()} for how, n in ACCOUNTINGS.items()},
        "vs_retraining": {how: share / n for how, n in ACCOUNTINGS.items()},
    }  # fmt: skip
    return made | changes


ACCOUNTINGS = {"whole": 1, "own": 4, "amortised": 2.5}


def summary(runs: list[Run], **changes: Any) -> dict[str, Any]:
    conclusions = [
        {"name": "alpha", "statement": "Robustness rises with α.", "state": "held", "evidence": "slope −.6 [−.8, −.4]"},
        {"name": "noise", "statement": "Noise helps.", "state": "open", "evidence": "accuracy +.003 [−.02, +.03]"},
        {"name": "rmu", "statement": "RMU does as well.", "state": "not run", "evidence": "This run has no RMU model."},
    ]
    made = {
        "sweep": "undo_arithmetic", "description": "Synthetic numbers for a test of the page.", "device": "cpu",
        "created": "2026-01-02T03:04:05", "points": {"total": 120, "finished": 118},
        "attack": {"steps": 100, "learning_rates": [1e-3, 1e-4], "seeds": 1, "batch": 4},
        "sharing": {"flops_shared": 1.2e15, "flops_unshared": 3.4e15},
        "runs": runs, "fits": fits.fit_all(runs), "conclusions": conclusions,
    }  # fmt: skip
    return made | changes


def large() -> dict[str, Any]:
    """Return a sweep of 500 runs: 3 methods, 6 alphas, 5 betas, 5 seeds, and 50 others."""
    grid = itertools.product(LABELS, (0.1, 0.3, 0.5, 0.7, 0.9, 1.0), (0.0, 0.05, 0.1, 0.2, 0.5), range(5))
    runs = [run("undo", *point) for point in grid if point[0]]
    for kind, seed in itertools.product(("reference", "oracle"), range(5)):
        runs.append(run(kind, None, None, None, seed))
    for kind, seed in itertools.product(("suppressed", "random student", "noise only", "filtered"), range(5)):
        runs.append(run(kind, "maxent", None, None, seed))
    for parameters, seed in itertools.product((280_000, 560_000), range(5)):
        runs.append(run("undo", "maxent", 0.5, 0.1, seed, parameters=parameters))
        runs.append(run("oracle", None, None, None, seed, parameters=parameters))
    runs[7] |= {"recovered": False, "steps": 2400}
    runs[8] |= {"diverged": True, "recovered": False}
    runs[9]["label"] = 'says "no", and\nbreaks, α'
    return summary(runs)


def with_holes() -> dict[str, Any]:
    """Return a small sweep whose strings attack the page and whose numbers are missing in every way."""
    runs = [run("undo", method, alpha, 0.1, 0) for method in ("maxent", HOSTILE) for alpha in (0.2, 0.4, 0.6)]
    runs += [run(HOSTILE, None, None, None, 0, id=HOSTILE, label=HOSTILE), run("oracle", None, None, None, 0)]
    runs[0] |= {"attack": None, "steps": math.nan}
    runs[1] |= {"compute": None, "vs_retraining": None, "retain": math.nan, "recovered": None}
    runs[2]["attack"] = {**runs[2]["attack"], "forget_heldout": [math.nan, None, 0.3, math.inf]}
    runs[3] |= {"method": None, "label": None, "seed": None, "parameters": None}
    runs[4] = {"id": "bare", "kind": "undo"}
    texts = {"sweep": HOSTILE, "description": HOSTILE, "device": HOSTILE, "points": {"total": 9, "finished": None}}
    told = [{"name": "hostile", "statement": HOSTILE, "state": "void", "evidence": HOSTILE}]
    return summary(runs, conclusions=told, attack=None, sharing=None, **texts)


def not_attacked() -> dict[str, Any]:
    return summary([run("undo", "maxent", alpha, 0.1, 0, attack=None) for alpha in (0.2, 0.4, 0.6)])


ODD: dict[str, Callable[[], dict[str, Any]]] = {
    "holes": with_holes, "not_attacked": not_attacked, "no_runs": lambda: summary([]), "nothing": dict,
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------- fits


def recovery_runs(steps: Callable[[float, int], float], alphas: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)) -> list[Run]:
    return [run("undo", "maxent", a, 0.1, seed, steps=steps(a, seed)) for a in alphas for seed in range(3)]


def noisy(seed: int) -> tuple[list[Run], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    runs = recovery_runs(lambda a, _: 200 + 500 * a + rng.normal(0, 40))
    return runs, np.array([r["alpha"] for r in runs]), np.array([r["steps"] for r in runs])


@pytest.mark.unit
def test_steps_fit_is_least_squares() -> None:
    runs, x, y = noisy(0)
    (entry,) = fits.steps_against_alpha(runs)
    assert {key: entry[key] for key in ("method", "beta", "parameters", "n", "left_out", "reason")} == {
        "method": "maxent", "beta": 0.1, "parameters": 140_000, "n": 12, "left_out": {}, "reason": None
    }  # fmt: skip
    fit, expected, t = entry["fit"], stats.linregress(x, y), stats.t.ppf(0.975, 10)
    for name, value, error in (
        ("slope", expected.slope, expected.stderr),
        ("intercept", expected.intercept, expected.intercept_stderr),
    ):
        ends = value, value - t * error, value + t * error
        assert (fit[name]["value"], fit[name]["low"], fit[name]["high"]) == pytest.approx(ends)
    assert fit["r2"] == pytest.approx(expected.rvalue**2)
    assert fit["exponential"]["rate"]["value"] == pytest.approx(np.polyfit(x, np.log(y), 1)[0])
    assert fit["exponential"]["r2"] == pytest.approx(stats.linregress(x, np.log(y)).rvalue ** 2)

    grid = np.array(fit["curve"]["alpha"])
    design, there = np.stack([np.ones_like(x), x], 1), np.stack([np.ones_like(grid), grid], 1)
    variance = np.einsum("ij,jk,ik->i", there, np.linalg.inv(design.T @ design), there)
    noise = np.sqrt(np.sum((y - np.polyval(np.polyfit(x, y, 1), x)) ** 2) / 10)
    middle = np.polyval(np.polyfit(x, y, 1), grid)
    np.testing.assert_allclose(fit["curve"]["steps"], middle)
    np.testing.assert_allclose(fit["curve"]["high"], middle + t * noise * np.sqrt(variance))
    np.testing.assert_allclose(fit["curve"]["low"], middle - t * noise * np.sqrt(variance))


@pytest.mark.unit
def test_leave_one_out_error_is_that_of_fits_without_the_run() -> None:
    runs, x, y = noisy(1)
    fit = fits.steps_against_alpha(runs)[0]["fit"]
    straight, bent = [], []
    for i in range(len(x)):
        others = np.arange(len(x)) != i
        straight.append(y[i] - np.polyval(np.polyfit(x[others], y[others], 1), x[i]))
        bent.append(y[i] - np.exp(np.polyval(np.polyfit(x[others], np.log(y[others]), 1), x[i])))
    assert fit["leave_one_out"] == pytest.approx(np.sqrt(np.mean(np.square(straight))))
    assert fit["exponential"]["leave_one_out"] == pytest.approx(np.sqrt(np.mean(np.square(bent))))


@pytest.mark.unit
@pytest.mark.parametrize("truth", ["straight line", "exponential"])
def test_the_better_shape_is_the_true_one(truth: str) -> None:
    shape = {"straight line": lambda a: 50 + 900 * a, "exponential": lambda a: 20 * math.exp(4 * a)}[truth]
    runs = recovery_runs(lambda a, seed: shape(a) * (1 + 0.02 * (seed - 1)))
    assert fits.steps_against_alpha(runs)[0]["fit"]["better"] == truth


@pytest.mark.unit
def test_intervals_cover_the_truth() -> None:
    rng, draws, inside = np.random.default_rng(2), 400, np.zeros(3)
    for _ in range(draws):
        steps = fits.steps_against_alpha(recovery_runs(lambda a, _: 200 + 500 * a + rng.normal(0, 40)))[0]["fit"]
        sizes = fits.compute_against_size(sized(lambda n, _: 3 * n**1.5 * 10 ** rng.normal(0, 0.1), seeds=1))[0]["fit"]
        seen = 3 * 1e9**1.5 * 10 ** rng.normal(0, 0.1)
        covered = steps["slope"], steps["intercept"], sizes["predictions"][1]
        inside += [c["low"] <= truth <= c["high"] for c, truth in zip(covered, (500, 200, seen), strict=True)]
    assert (abs(inside / draws - 0.95) < 0.035).all(), inside / draws  # three standard errors of 400 draws


@pytest.mark.unit
def test_left_out_runs_are_counted_by_reason() -> None:
    runs = recovery_runs(lambda a, seed: 100 * a + seed + 1)
    worse: list[Run] = [
        {"diverged": True},
        {"recovered": False},
        {"recovered": None},
        {"steps": math.nan},
        {"steps": None},
    ]
    worse += [{"diverged": True, "recovered": False}, {"alpha": None}]
    spoilt = [{**runs[0], "steps": 9e9, **change} for change in worse]
    (entry,), (clean_entry,) = fits.steps_against_alpha(runs + spoilt), fits.steps_against_alpha(runs)
    reasons = {"diverged": 2, "did not recover": 1, "recovery not recorded": 1, "no steps": 2, "no alpha": 1}
    assert entry["left_out"] == reasons and entry["n"] == 12
    assert entry["fit"] == clean_entry["fit"]


@pytest.mark.unit
def test_too_little_for_a_fit_is_said() -> None:
    (entry,) = fits.steps_against_alpha(recovery_runs(lambda a, _: a, (0.2, 0.4)))
    assert entry["fit"] is None and entry["n"] == 6 and "2 distinct α" in entry["reason"]
    (entry,) = fits.compute_against_size([r for r in sized(lambda n, _: n) if r["parameters"] < 3e5])
    assert entry["fit"] is None and "2 distinct model sizes" in entry["reason"]
    assert fits.fit_all([]) == {"steps_against_alpha": [], "compute_against_size": []}
    zero = fits.steps_against_alpha(recovery_runs(lambda a, _: 100 * (a - 0.2)))[0]["fit"]
    assert zero["exponential"] is None and zero["better"] is None and zero["slope"]["value"] == pytest.approx(100)


@pytest.mark.unit
def test_runs_that_differ_in_a_setting_are_fits_of_their_own() -> None:
    """Least squares through each alone; the model's shape is what sizes differ in, and no variant."""
    short, long = (recovery_runs(lambda a, seed, slope=slope: 50 + slope * a + seed) for slope in (300, 900))
    for runs, steps in ((short, 100), (long, 400)):
        for r in runs:
            r["settings"] = {"maxent.steps": steps, "reference.steps": 7}
    entries = fits.steps_against_alpha([r for pair in zip(short, long, strict=True) for r in pair])
    assert [entry["settings"] for entry in entries] == [{"maxent.steps": 100}, {"maxent.steps": 400}]
    for entry, runs in zip(entries, (short, long), strict=True):
        slope = stats.linregress([r["alpha"] for r in runs], [r["steps"] for r in runs]).slope
        assert entry["fit"]["slope"]["value"] == pytest.approx(slope) and entry["n"] == len(runs)
    assert "maxent.steps = 400" in sweep_page.render(clean(summary(short + long)))
    runs = [{**r, "settings": {"model.hidden": r["parameters"]}} for r in sized(lambda n, _: n)]
    assert len(fits.compute_against_size(runs)) == 1


def sized(flops: Callable[[float, int], float], seeds: int = 3) -> list[Run]:
    sizes = (100_000, 200_000, 400_000, 800_000)
    made = [run("undo", "maxent", 0.6, 0.1, seed, parameters=n) for n in sizes for seed in range(seeds)]
    for r in made:
        total = flops(r["parameters"], r["seed"])
        r["compute"]["whole"] |= {"student": 0.75 * total, "teacher": 0.25 * total, "attack": 1e30}
    return made


@pytest.mark.unit
def test_size_fit_is_a_log_log_regression_with_a_prediction_interval() -> None:
    rng = np.random.default_rng(3)
    runs = sized(lambda n, _: 7 * n**1.4 * 10 ** rng.normal(0, 0.05))
    (entry,) = fits.compute_against_size(runs, at=(1e7, 1e9))
    sizes = sorted({r["parameters"] for r in runs})
    whole = {id(r): r["compute"]["whole"]["student"] + r["compute"]["whole"]["teacher"] for r in runs}
    y = np.array([stats.gmean([whole[id(r)] for r in runs if r["parameters"] == n]) for n in sizes])
    x, t, n = np.log(sizes), stats.t.ppf(0.975, 2), 4
    expected = stats.linregress(x, np.log(y))
    noise = math.sqrt(np.sum((np.log(y) - expected.intercept - expected.slope * x) ** 2) / (n - 2))
    for size, seen in zip((1e7, 1e9), entry["fit"]["predictions"], strict=True):
        middle = expected.intercept + expected.slope * math.log(size)
        half = t * noise * math.sqrt(1 + 1 / n + (math.log(size) - x.mean()) ** 2 / np.sum((x - x.mean()) ** 2))
        ends = [math.exp(middle + half * sign) for sign in (0, -1, 1)]
        assert [seen["flops"], seen["low"], seen["high"]] == pytest.approx(ends)
    exponent = entry["fit"]["exponent"]
    assert exponent["value"] == pytest.approx(expected.slope) and entry["fit"]["r2"] == pytest.approx(
        expected.rvalue**2
    )
    assert exponent["high"] - exponent["value"] == pytest.approx(t * expected.stderr)
    assert "4 sizes" in entry["fit"]["warning"] and "1.1 to 3.1 orders of magnitude" in entry["fit"]["warning"]


@pytest.mark.unit
def test_a_law_that_needs_less_than_one_step_is_said_not_to_hold() -> None:
    # 1,000 FLOPs a parameter and step; 100 steps at 1e5 parameters, and by the law one step at 1e9.
    def judged(exponent: float) -> str:
        runs = sized(lambda n, _: 1e10 * (n / 1e5) ** exponent)
        runs = [r | {"steps": round(100 * (r["parameters"] / 1e5) ** (exponent - 1))} for r in runs]
        return fits.compute_against_size(runs, at=(1e7, 1e8, 1e10))[0]["fit"]["warning"]

    assert "At 1e+10 parameters it already means less than one training step" in judged(0.5)
    assert "less than one" not in judged(1.1)


@pytest.mark.unit
def test_seeds_do_not_stand_in_for_sizes() -> None:
    runs = sized(lambda n, seed: n**1.5 * (1 + 0.3 * (n == 200_000)))
    again = [{**r, "seed": r["seed"] + 3 * turn} for r in runs for turn in range(9)]
    (few,), (many,) = fits.compute_against_size(runs), fits.compute_against_size(again)
    assert many["n"] == 9 * few["n"] and many["fit"]["predictions"][0]["high"] == pytest.approx(
        few["fit"]["predictions"][0]["high"]
    )
    three = fits.compute_against_size([r for r in runs if r["parameters"] < 8e5])[0]["fit"]["predictions"][0]
    four = few["fit"]["predictions"][0]
    assert three["high"] / three["low"] > 1e6 * four["high"] / four["low"]  # one degree of freedom says next to nothing


# ---------------------------------------------------------------------------------------------------- the page's text


@pytest.mark.unit
@pytest.mark.parametrize("variant", ODD)
def test_page_is_safe_and_whole(variant: str) -> None:
    made = ODD[variant]()
    html = sweep_page.render(clean(made))
    page = Page(html)
    data = [text for attributes, text in page.scripts if attributes.get("id") == "drawings"]
    assert json.loads(data[0])["runs"] == clean(made.get("runs") or [])
    outside = {"img", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    links = [a["href"] for tag, a in page.tags if tag == "link"]
    assert not outside and links == ["data:,"] and not any("src" in a or "onerror" in a for _, a in page.tags)
    assert not re.search(r"@import|url\(", page.styles)
    if variant == "holes":
        assert page.text.count(HOSTILE) == 7  # title, heading, description, device, a conclusion's two, a fit's method


@pytest.mark.unit
def test_page_says_what_is_missing() -> None:
    text = Page(sweep_page.render(not_attacked())).text
    assert "118 of 120 points have finished. This sweep is unfinished" in text
    assert "3 of 3 were not attacked" in text and "One training seed" in text
    assert "saved 65\u202f%" in text  # 1 - 1.2 / 3.4
    assert "✓ held" in text and "– open" in text and "Not run: RMU does as well." in text
    full = Page(
        sweep_page.render(
            summary([run("oracle", None, None, None, s) for s in (0, 1)], points={"total": 1, "finished": 1})
        )
    )
    assert "unfinished" not in full.text and "One training seed" not in full.text and "not attacked" not in full.text


@pytest.mark.unit
def test_write_is_valid_json_that_draws_the_same_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = write_page(sweep_page.render, with_holes(), tmp_path / "report" / "sweep.json")
    assert sorted(path.name for path in page.parent.iterdir()) == ["index.html", "sweep.json"]
    text = (page.parent / "sweep.json").read_text(encoding="utf-8")
    read = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert read["runs"][1]["retain"] is None and read["runs"][2]["attack"]["forget_heldout"] == [None, None, 0.3, None]
    assert sweep_page.render(read) == page.read_text(encoding="utf-8")
    before = {path.name: path.read_bytes() for path in page.parent.iterdir()}
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_page(sweep_page.render, large(), page.parent / "sweep.json")
    assert {path.name: path.read_bytes() for path in page.parent.iterdir()} == before


@pytest.mark.unit
def test_the_answer_is_that_of_the_conclusions_on_cost() -> None:
    def answer(**states: str) -> str:
        made = [{"name": f"cheaper, schedule, {m}", "statement": "", "state": s} for m, s in states.items()]
        return Page(sweep_page.render({"conclusions": made})).text

    assert "no more than 80 % of its compute: yes with MaxEnt and RMU; no with GradDiff." in answer(
        maxent="held", rmu="held", graddiff="failed"
    )
    assert "not to be judged with MaxEnt, as a premise is not shown" in answer(maxent="void")
    assert "Nothing was compared yet" in answer(maxent="not run") and "Nothing was compared yet" in answer()
    assert "1 of 2 findings held" in Page(sweep_page.render(not_attacked())).text


# ---------------------------------------------------------------------------------------------------- the browser

# Run in the page after its own scripts: use every control and write down what it did.
PROBE = """<script>
drawn.then(() => {
const seen = {}, plotted = place => document.getElementById(place);
const marks = () => Object.fromEntries(plotted('compute').data.filter(t => t.customdata).flatMap(t => t.customdata.map(
  (key, i) => [key, [t.x[i], t.y[i], t.error_y?.array[i] ?? null, t.error_y?.arrayminus[i] ?? null]])));
const front = () => {
  const line = plotted('compute').data.find(trace => trace.name === 'Pareto front');
  return line ? line.x.map((x, i) => [x, line.y[i]]) : [];
};
const rows = () => [...document.querySelectorAll('#runs tbody tr')], lines = () => plotted('heldout').data
  .filter(trace => trace.name).length;
const take = name => seen[name] = { marks: marks(), front: front(), rows: rows().map(row => row.dataset.id),
  note: plotted('compute-note').textContent };
const choose = (id, value) => {
  plotted(id).value = value;
  if (plotted(id).value) plotted(id).dispatchEvent(new Event('change'));  // else there is no such choice
};
const box = (field, word) => [...document.querySelectorAll(`#filters input[data-field=${field}]`)]
  .find(input => input.parentElement.textContent.trim().endsWith(word));
seen.drawn = Object.fromEntries(FIGURES.map(place => [place, plotted(place)?.querySelectorAll('.trace, .hm').length]));
seen.titles = FIGURES.flatMap(place => ['xaxis', 'yaxis'].map(axis => plotted(place)?.layout[axis].title.text));
seen.floor = plotted('compute').layout.yaxis.range[0];
seen.traces = plotted('compute').data.length;
seen.fronts = CASES.map(points => pareto(points.map(([x, y]) => ({ x, y }))).map(({ x, y }) => [x, y]));
take('start');
choose('accounting', 'amortised'); choose('step', '40'); choose('tolerance', '0.002'); take('amortised');
choose('unit', 'all'); choose('accounting', 'own'); choose('step', '100'); choose('tolerance', '0.2'); take('flops');
choose('unit', 'share'); choose('accounting', 'whole'); choose('tolerance', '0.05');
box('method', 'rmu')?.click(); box('seed', '3')?.click(); take('filtered');
seen.grids = ['grid-heldout', 'grid-retain'].flatMap(place => plotted(place).data).map(({ x, y, z }) => [x, y, z]);
seen.curves = Object.fromEntries(['heldout', 'relearned', 'kept'].map(place => [place, Object.fromEntries(
  plotted(place).data.filter(trace => trace.name).map(trace => [trace.name, trace.y]))]));
seen.before = Object.fromEntries(plotted('accuracies').data.flatMap(trace => trace.customdata.map(
  (key, i) => [key, [trace.x[i], trace.y[i]]])));
seen.csv = csvText();
plotted('reset').click(); take('reset');
document.querySelector('#filters button[data-field=kind]')?.click(); take('none'); plotted('reset').click();
seen.lines = [lines()];
const clicked = action => { action(); seen.lines.push(lines()); };
const key = Object.keys(marks()).find(key => !selected.has(key));
if (key) {
  clicked(() => rows()[0].cells[1].click());
  clicked(() => rows()[0].querySelector('input').click());
  for (const _ of [1, 2]) clicked(() => plotted('compute').emit('plotly_click', { points: [{ customdata: key }] }));
  clicked(() => document.querySelector('#selection button').click());
}
for (const way of ['up', 'down']) {
  document.querySelector('#runs th button[data-column="7"]').click();
  seen[way] = rows().map(row => row.cells[7].textContent);
}
seen.injected = document.querySelectorAll('img, [onerror], body script:not([id])').length;
const result = document.body.appendChild(document.createElement('pre'));
result.id = 'seen';
result.textContent = encodeURIComponent(JSON.stringify(seen));
});
</script>"""


def probe(made: dict[str, Any], folder: Path) -> tuple[dict[str, Any], list[str], list[list[list[int]]]]:
    """Return what the probe saw, what the console logged and the point sets whose fronts it asked for."""
    rng = np.random.default_rng(4)
    cases = [rng.integers(0, 6, (rng.integers(0, 12), 2)).tolist() for _ in range(200)]
    page = write_page(sweep_page.render, made, folder / "sweep.json")
    start, end, rest = page.read_text(encoding="utf-8").rpartition("</body>")
    script = PROBE.replace("CASES", json.dumps(cases)).replace("FIGURES", json.dumps(FIGURES))
    page.write_text(start + script + end + rest, encoding="utf-8")
    dom, logged = browse(page, folder / "profile")
    found = re.search(r'<pre id="seen">(.*?)</pre>', dom)
    seen: dict[str, Any] = json.loads(unquote(found[1])) if found else {}
    return seen, logged, cases


def groups(runs: list[Run]) -> dict[str, list[Run]]:
    made: dict[str, list[Run]] = {}
    for r in runs:
        key = [r["kind"], r["method"], r["alpha"], r["beta"], r["parameters"], r["label"]]
        plain = [int(v) if isinstance(v, float) and v == int(v) else v for v in key]
        made.setdefault(json.dumps(plain, separators=(",", ":"), ensure_ascii=False), []).append(r)
    return made


def check_marks(seen: dict[str, Any], runs: list[Run], x: Callable[[Run], float], step: int, tolerance: float) -> None:
    """Hold every mark, bar and the front against NumPy, SciPy and a comparison of all pairs."""
    expected, allowed = {}, []
    for key, same in groups(runs).items():
        y = np.array([r["attack"]["forget_heldout"][STEPS.index(step)] for r in same])
        half = stats.t.ppf(0.975, len(y) - 1) * stats.sem(y) if len(y) > 1 else 0.0  # no interval of one
        up, down = min(y.mean() + half, 1) - y.mean(), y.mean() - max(y.mean() - half, 0)
        expected[key] = [np.mean([x(r) for r in same]), y.mean(), up, down]
        oracles = [r["retain"] for r in ALL if r["kind"] == "oracle" and r["parameters"] == same[0]["parameters"]]
        if np.mean(oracles) - np.mean([r["retain"] for r in same]) <= tolerance:
            allowed.append(expected[key][:2])
    assert seen["marks"].keys() == expected.keys()
    for key, values in expected.items():
        assert seen["marks"][key] == pytest.approx(values, abs=1e-12)
    np.testing.assert_allclose(sorted(seen["front"]), brute_force(allowed))
    assert f"{len(expected)} settings drawn, {len(seen['front'])} on the front" in seen["note"]
    assert f"Kept off the front: {len(expected) - len(allowed)} with retain" in seen["note"]


def check_grids(grids: list[Any], runs: list[Run]) -> None:
    for (alphas, betas, table), heldout in zip(grids, (True, False), strict=True):
        assert (len(alphas), len(betas)) == (6, 5)
        for (i, alpha), (j, beta) in itertools.product(enumerate(alphas), enumerate(betas)):
            cell = [r for r in runs if (r["kind"], r["method"], r["parameters"]) == ("undo", "maxent", 140_000)]
            cell = [r for r in cell if (r["alpha"], r["beta"]) == (float(alpha), float(beta))]
            values = [r["attack"]["forget_heldout"][-1] if heldout else r["retain"] for r in cell]
            assert table[j][i] == pytest.approx(np.mean(values))


def brute_force(points: list[Any]) -> list[Any]:
    """Return, sorted, the points that no other beats in one coordinate without losing in the other."""
    return sorted(
        list(p) for p in points if not any(q[0] <= p[0] and q[1] <= p[1] and list(q) != list(p) for q in points)
    )


ALL = large()["runs"]


@pytest.mark.end_to_end
def test_browser_draws_500_runs_and_its_controls_work(tmp_path: Path) -> None:
    assert len(ALL) == 500
    seen, logged, cases = probe(large(), tmp_path)
    assert logged == []
    assert all(seen["drawn"][place] for place in FIGURES), seen["drawn"]
    assert seen["traces"] < 60 and all(seen["titles"]) and len(seen["titles"]) == 2 * len(FIGURES)
    assert -0.1 < seen["floor"] <= 0
    assert [sorted(front) for front in seen["fronts"]] == [brute_force(points) for points in cases]

    def all_flops(r: Run) -> float:
        return sum(r["compute"]["own"].values())

    check_marks(seen["start"], ALL, lambda r: r["vs_retraining"]["whole"], 100, 0.05)
    check_marks(seen["amortised"], ALL, lambda r: r["vs_retraining"]["amortised"], 40, 0.002)
    check_marks(seen["flops"], ALL, all_flops, 100, 0.2)
    kept = [r for r in ALL if r["method"] != "rmu" and r["seed"] != 3]
    check_marks(seen["filtered"], kept, lambda r: r["vs_retraining"]["whole"], 100, 0.05)
    assert sorted(seen["filtered"]["rows"]) == sorted(r["id"] for r in kept)
    check_grids(seen["grids"], kept)
    for key, same in groups(kept).items():
        assert seen["before"][key] == pytest.approx([np.mean([r[part] for r in same]) for part in ("forget", "retain")])
    measures = {"heldout": "forget_heldout", "relearned": "forget_shown", "kept": "retain_at_worst"}
    for place, measure in measures.items():
        assert len(seen["curves"][place]) == 6 and "oracle of nothing" in seen["curves"][place]
        for label, y in seen["curves"][place].items():
            same = [r for r in kept if r["label"] == label and r["parameters"] == 140_000]
            assert y == pytest.approx(np.mean([r["attack"][measure] for r in same], axis=0))
    assert len(seen["start"]["rows"]) == 500
    assert seen["reset"] == seen["start"]
    assert seen["none"]["rows"] == [] and seen["none"]["marks"] == {}
    first = seen["lines"][0]
    assert first == 6 and seen["lines"][1:] == [first + 1, first, first + 1, first, first - 1]
    assert len(seen["up"]) == 500 and len(set(seen["up"])) > 10
    assert [float(v) for v in seen["up"]] == sorted(round(100 * r["retain"], 1) for r in ALL)
    assert seen["down"] == seen["up"][::-1]
    check_csv(seen["csv"], kept)


def check_csv(text: str, runs: list[Run]) -> None:
    rows = {row["id"]: row for row in csv.DictReader(io.StringIO(text, newline=""), strict=True)}
    assert len(rows) == len(runs)
    for r in runs:
        row = rows[r["id"]]
        assert (row["label"], row["kind"]) == (r["label"], r["kind"])
        assert (row["alpha"], row["method"]) == ("" if r["alpha"] is None else f"{r['alpha']:g}", r["method"] or "")
        assert row["recovered"] == {True: "true", False: "false", None: ""}[r["recovered"]]
        numbers = {"retain": r["retain"], "forget": r["forget"], "forget_heldout": r["attack"]["forget_heldout"][-1]}
        numbers |= {f"vs_retraining_{how}": r["vs_retraining"][how] for how in ACCOUNTINGS}
        numbers |= {f"flops_{h}_{part}": v for h in ACCOUNTINGS for part, v in r["compute"][h].items()}
        assert {name: float(row[name]) for name in numbers} == numbers  # to the last bit
        assert row["attack_step"] == "100"


@pytest.mark.end_to_end
@pytest.mark.parametrize("variant", ["holes", "not_attacked", "no_runs"])
def test_browser_draws_odd_sweeps_without_a_word(tmp_path: Path, variant: str) -> None:
    made = ODD[variant]()
    seen, logged, _ = probe(made, tmp_path)
    assert logged == [] and seen["injected"] == 1  # the probe
    assert sorted(seen["start"]["rows"]) == sorted(r["id"] for r in made["runs"])
    whole = [r for r in made["runs"] if r.get("attack") and r.get("vs_retraining")]
    known = [r for r in whole if math.isfinite(r["attack"]["forget_heldout"][-1])]
    assert len(seen["start"]["marks"]) == len(known) and all(
        mark[2] is None for mark in seen["start"]["marks"].values()
    )
    table = list(csv.DictReader(io.StringIO(seen["csv"], newline=""), strict=True))
    assert {row["id"]: row["retain"] == "" for row in table} == {
        r["id"]: not math.isfinite(r.get("retain", math.nan)) for r in made["runs"]
    }
