"""The report: safe to open, true to its summary, whole on disk, and drawn by a real browser."""

from __future__ import annotations

import base64
import copy
import gzip
import itertools
import json
import math
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plotly.offline import get_plotlyjs

from distill_jax.config import ConfigError
from distill_jax.reports import attack_curves, label_places, run_figures, run_page, run_tables
from distill_jax.reports.rendering import clean
from distill_jax.reports.run_summary import redraw
from distill_jax.reports.trace_style import trace_styles
from distill_jax.stages import Unlearn

STEPS = list(range(0, 201, 10))
HOSTILE = '<script>alert("x")</script><img src=http://evil.example/a.png> & \'"'
HELD, FAILED, OPEN, VOID, NOT_RUN = "held", "failed", "open", "void", "not run"


def conclusion(statement: str, state: str, evidence: str) -> dict[str, Any]:
    premises = [{"statement": "the sun shines", "shown": True, "evidence": "look"}]
    premises += [{"statement": "it was unlearned", "shown": False, "evidence": "forget 0.88"}] if state == VOID else []
    return {"name": statement, "statement": statement, "state": state, "evidence": evidence, "premises": premises}


CONCLUSIONS = [
    conclusion("Unlearning alone is undone.", HELD, "0.92 after 200 steps"),
    conclusion("UNDO matches the oracle.", FAILED, "0.19 > 0.09"),
    conclusion(f"A hostile claim {HOSTILE}", OPEN, f"none {HOSTILE}"),
    conclusion("Nothing was unlearned.", VOID, "Not shown: unlearning suppressed it (forget 0.88)."),
    conclusion("RMU helps.", NOT_RUN, "This run has no RMU model."),
    conclusion("GradDiff helps.", NOT_RUN, "This run has no GradDiff model."),
]


def headline(beyond: str, oracle: str, /, **changes: Any) -> dict[str, Any]:
    """The models of `example` at the top, and what became of the answer's two conclusions."""
    names = {"suppressed": "maxent", "undo": "undo-0.8", "student": "student", "oracle": "oracle", "best": "student"}
    told = [conclusion("beyond", beyond, f"Beyond {HOSTILE}."), conclusion("oracle", oracle, "As the oracle.")]
    return {**names, "undo_choices": 3, "choices": 4, "conclusions": told} | changes


def curve(end: float, band: float = 0.03) -> dict[str, list[float]]:
    worst = [0.02 + (end - 0.02) * (1 - math.exp(-step / 60)) / (1 - math.exp(-200 / 60)) for step in STEPS]
    return {"worst": worst, "low": [value - band for value in worst], "high": [value + band for value in worst]}


def model(name: str, stage: str, end: float | None, cost: float | None, **changes: Any) -> dict[str, Any]:
    attack = None
    if end is not None:
        attack = {"steps": STEPS, "forget_heldout": curve(end), "forget_shown": curve(1.0), "diverged": 2}
        attack |= {"retain_at_worst": [0.9] * len(STEPS), "best_learning_rate": [1e-3] * len(STEPS)}
    groups = {"add/equation": {"accuracy": 0.971, "prompts": 200}, "mul/word": {"accuracy": 0.0134, "prompts": 200}}
    part = {"pretrain": "oracle" if name == "oracle" else "reference", "unlearn": "suppressed"}.get(stage, "undo")
    part = "random student" if name == "student" else part
    base = {"name": name, "label": name.title(), "stage": stage, "settings": {}, "seeds": 3, "retain": 0.9512}
    base |= {"role": part}
    base |= {"forget": 0.0207, "by_group": groups, "steps": 1234, "recovered": True, "compute_vs_oracle": cost}
    base |= {"compute_vs_first_passage": 2 * cost if stage == "distill" and cost else None}
    return base | {"flops": {"student": 3e14, "teacher": 1e14, "evaluation": 2e13}, "attack": attack} | changes


def example() -> dict[str, Any]:
    taught = {"teacher": "maxent", "method": "maxent"}
    models = [
        model("reference", "pretrain", None, 1.33),
        model("maxent", "unlearn", 0.92, 0.01),
        model("undo-0.4", "distill", 0.68, 0.34, settings={**taught, "alpha": 0.4}, label="UNDO α = 0.4"),
        model("undo-0.8", "distill", 0.19, 0.71, settings={**taught, "alpha": 0.8}, label="UNDO α = 0.8"),
        model("undo-0.9", "distill", 0.05, 0.75, settings={**taught, "alpha": 0.9}, recovered=False),
        model("student", "distill", 0.15, 0.88, settings={**taught, "start": "random"}),
        model("oracle", "pretrain", 0.09, 1.0),
        model(f"hostile {HOSTILE}", "distill", 0.5, 0.5, label=HOSTILE, settings={"start": HOSTILE}),
    ]
    return {
        "experiment": f"arithmetic {HOSTILE}", "identity": "8f3ac1d2", "description": HOSTILE, "device": "cpu",
        "duration_seconds": 5423.0, "evaluated": {"retain": 800, "forget_shown": 400, "forget_heldout": 400},
        "facts": {"shown": 320, "heldout": 321}, "models": models,
        "conclusions": CONCLUSIONS, "headline": headline(HELD, HELD),
        "attack": {"steps": 200, "learning_rates": [1e-3, 1e-4], "seeds": 3, "batch": 15},
    }  # fmt: skip


def without_oracle() -> dict[str, Any]:
    summary = example()
    unknown = {"compute_vs_oracle": None, "compute_vs_first_passage": None}
    summary["models"] = [{**m, **unknown} for m in summary["models"] if m["name"] != "oracle"]
    summary["headline"] = headline(HELD, NOT_RUN, oracle=None)
    return summary


def with_holes() -> dict[str, Any]:
    summary = example()
    summary["models"][1]["retain"] = float("nan")
    summary["models"][2]["attack"]["forget_heldout"]["worst"][-1] = float("nan")
    summary["models"][3]["attack"]["forget_heldout"] |= {"low": [None] * len(STEPS), "high": []}
    summary["models"][4]["attack"]["best_learning_rate"] = None
    summary["models"][5] |= {"by_group": {}, "flops": None, "compute_vs_oracle": float("inf"), "steps": None}
    return summary


def many() -> dict[str, Any]:
    summary = example()
    alphas = [index / 20 for index in range(20)]
    summary["models"] += [model(f"u{a}", "distill", 1 - a, a, settings={"alpha": a, "beta": 0}) for a in alphas]
    return summary


VARIANTS = {
    "full": example,
    "without_oracle": without_oracle,
    "holes": with_holes,
    "many": many,
    "single": lambda: {**example(), "models": example()["models"][:1], "conclusions": []},
    "one_attacked": lambda: {**example(), "models": example()["models"][3:4]},
    "no_attack": lambda: {**example(), "models": [{**m, "attack": None} for m in example()["models"]]},
    "empty": dict,
}


def script_json(text: str) -> str:
    """A string as it may stand in a script element."""
    return "".join(f"\\u{ord(c):04x}" if c in "<>&'" else c for c in json.dumps(text))


class Page(HTMLParser):
    """Collect what the tests ask about a page: elements, attributes, scripts and the text of table cells."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[tuple[dict[str, str], str]] = []
        self.styles, self.text = "", ""
        self.rows: dict[str, list[tuple[str, str]]] = {}  # model: [(data-value, shown text)]
        self._open, self._row = "", ""
        self.feed(html)
        self.close()
        self.text = re.sub(r"[ \n]+", " ", self.text)  # as a browser shows it

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {key: value or "" for key, value in attrs}
        self.tags.append((tag, attributes))
        self._open = tag
        if tag == "tr":
            self._row = attributes.get("data-model", "")
        if tag == "script":
            self.scripts.append((attributes, ""))
        if tag == "td" and self._row:
            self.rows.setdefault(self._row, []).append((attributes["data-value"], ""))

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self._open == "style":
            self.styles += data
        else:
            self.text += data
            if self._open in ("td", "b") and self._row and self.rows.get(self._row):
                value, shown = self.rows[self._row][-1]
                self.rows[self._row][-1] = (value, shown + data)

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    @property
    def drawings(self) -> dict[str, Any]:
        (data,) = [text for attributes, text in self.scripts if attributes.get("id") == "drawings"]
        return json.loads(data, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


@pytest.mark.unit
@pytest.mark.parametrize("variant", VARIANTS)
def test_page_has_no_external_references(variant: str) -> None:
    page = Page(run_page.render(clean(VARIANTS[variant]())))
    links = [value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "href")]
    assert [link for link in links if not link.startswith(("#", "data:"))] == []
    own = page.styles + "".join(text for attributes, text in page.scripts if attributes.get("id") != "plotly")
    own += "".join(attributes.get("style", "") for _, attributes in page.tags)
    assert "body" in own and not re.search(r"url\s*\(|@import|import\s*\(|fetch\s*\(", own)
    assert {tag for tag, _ in page.tags}.isdisjoint({"iframe", "img", "object", "embed", "base"})


@pytest.mark.unit
@pytest.mark.parametrize("variant", VARIANTS)
def test_figures_are_valid_plotly(variant: str) -> None:
    drawings = Page(run_page.render(clean(VARIANTS[variant]()))).drawings
    expected = {"full": 5, "without_oracle": 5, "holes": 5, "many": 5, "one_attacked": 5}.get(variant, 0)
    assert len(drawings["figures"]) == expected
    for figure in drawings["figures"].values():
        go.Figure(figure)  # raises on an unknown property or a value out of its domain
        assert all(len(trace["x"]) == len(trace["y"]) for trace in figure["data"])


@pytest.mark.unit
def test_the_settings_shown_are_those_that_the_method_reads() -> None:
    rmu, maxent = Unlearn(method="rmu", start="a").as_dict(), Unlearn(method="maxent", start="a").as_dict()
    models: Any = [{"label": "RMU", "settings": rmu}, {"label": "MaxEnt", "settings": maxent}, {"label": "UNDO"}]
    shown = [row[2] for row in run_tables.ledger(models).rows]
    assert "layer = 1," in shown[0] and "steer = 6.5" in shown[0] and "steps = " in shown[1] and shown[2] == ""
    assert not re.search("layer|steer", shown[1])


@pytest.mark.unit
def test_plotly_is_carried_once_and_compressed() -> None:
    html = run_page.render(example())
    (packed,) = [text for attributes, text in Page(html).scripts if attributes.get("id") == "plotly"]
    assert gzip.decompress(base64.b64decode(packed, validate=True)).decode() == get_plotlyjs()
    assert len(html) < 0.42 * len(get_plotlyjs()) + 400_000


@pytest.mark.unit
def test_strings_are_shown_and_inert() -> None:
    summary = example()
    page = Page(run_page.render(summary))
    assert not any("alert" in text for a, text in page.scripts if a["id"] not in ("drawings", "plotly"))
    assert script_json(f"hostile {HOSTILE}") in next(text for a, text in page.scripts if a["id"] == "drawings")
    told = [text for one in CONCLUSIONS for text in (one["statement"], one["evidence"])]
    told += [m["label"] for m in summary["models"]] + [summary["experiment"], summary["description"]]
    assert [text for text in told if text not in page.text] == []
    names = [trace["name"] for f in page.drawings["figures"].values() for trace in f["data"] if "name" in trace]
    assert any("&lt;script&gt;" in name for name in names) and not any("<" in name for name in names)


@pytest.mark.unit
def test_every_state_is_told_apart() -> None:
    html = run_page.render(example())
    body = html[html.index('<section id="claims">') : html.index('<section id="terms">')]
    shown = re.findall(r'<span class="(\w+)">(.*?)</span>', body)
    assert shown == [("held", "✓ held"), ("failed", "✗ failed"), ("open", "– open"), ("void", "∅ void")]
    assert "Of 4 claims 1 held, 1 failed, 1 open, 1 void; 2 were not run." in html
    assert body.count("This run has no") == 2 and body.count("<b>Not run:</b>") == 1
    nothing = run_page.render({**example(), "conclusions": [CONCLUSIONS[-1]]})
    assert "Of 0 claims 0 held, 0 failed, 0 open, 0 void; 1 were not run." in nothing


@pytest.mark.unit
@pytest.mark.parametrize("variant", ["full", "holes", "without_oracle"])
def test_table_carries_the_numbers_of_the_summary(variant: str) -> None:
    summary = clean(VARIANTS[variant]())
    rows = Page(run_page.render(summary)).rows
    assert list(rows) == [m["name"] for m in summary["models"]]
    for m in summary["models"]:
        groups = [m["by_group"].get(name, {}).get("accuracy") for name in ("add/equation", "mul/word")]
        worst = m["attack"]["forget_heldout"]["worst"] if m["attack"] else [None] * len(STEPS)
        attacked = [worst[0], worst[STEPS.index(100)], worst[-1]]
        relative = [m["compute_vs_oracle"], m.get("compute_vs_first_passage")]
        costs = [] if variant == "without_oracle" else relative
        expected = [m["retain"], m["forget"], *groups, *attacked, m["steps"], *costs, m["recovered"]]
        assert [json.loads(value) if value else None for value, _ in rows[m["name"]]] == expected
        shown = [text for _, text in rows[m["name"]]]
        assert shown[0] == ("–" if m["retain"] is None else f"{100 * m['retain']:.1f}")
        assert shown[6] == ("–" if attacked[2] is None else f"{100 * attacked[2]:.1f}")
        assert shown[-1] == ("met" if m["recovered"] else "missed")


@pytest.mark.unit
def test_answer_says_what_was_reached_and_what_for() -> None:
    text = Page(run_page.render(example())).text
    assert "Student resists relearning: better than suppression alone, and no worse than the oracle." in text
    assert "best of 3 settings" in text and "19\u202f% from UNDO α = 0.8" in text
    assert "covers 93\u202f% of the way from suppression to the oracle for 88\u202f%" in text
    assert "(176\u202f% of what the oracle itself took to reach the same goal)" in text


@pytest.mark.unit
@pytest.mark.parametrize(
    ("stage", "began"),
    [("pretrain", "trained on everything"), ("import", "A published model was made"), ("finetune", "was taught")],
)
def test_answer_says_what_the_run_began_with(stage: str, began: str) -> None:
    summary = example()
    (reference,) = [model for model in summary["models"] if model["role"] == "reference"]
    reference["stage"] = stage
    text = Page(run_page.render(summary)).text
    assert began in text and ("trained on everything" in text) == (stage == "pretrain")


@pytest.mark.unit
@pytest.mark.parametrize(
    ("beyond", "oracle", "answer"),
    [
        (HELD, FAILED, "better than suppression alone, but less than the oracle"),
        (HELD, OPEN, "whether as well as the oracle is open"),
        (HELD, VOID, "the comparison with the oracle is void"),
        (OPEN, HELD, "Student is not shown to be more robust than suppression alone."),
        (FAILED, HELD, "Student is less robust than suppression alone."),
        (VOID, VOID, "Nothing can be concluded of robustness. Not shown: it was unlearned (forget 0.88)."),
        (NOT_RUN, NOT_RUN, "nothing to compare"),
    ],
)
def test_answer_is_the_state_of_its_conclusions(beyond: str, oracle: str, answer: str) -> None:
    assert answer in Page(run_page.render({**example(), "headline": headline(beyond, oracle)})).text


@pytest.mark.unit
@pytest.mark.parametrize(("name", "key"), [("summary.json", "claims"), ("sweep.json", "findings")])
def test_a_summary_of_an_older_version_is_refused_with_a_mend(tmp_path: Path, name: str, key: str) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / name).write_text(json.dumps({"models": [], key: []}))
    with pytest.raises(
        ConfigError,
        match=rf"{name}\) was changed since it was written, or is an earlier version's",
    ):
        redraw(tmp_path)
    assert not (tmp_path / "report" / "index.html").exists()


@pytest.mark.unit
def test_answer_without_oracle_or_attack() -> None:
    assert "no oracle to compare with" in Page(run_page.render(without_oracle())).text
    assert "No model was attacked" in Page(run_page.render(VARIANTS["no_attack"]())).text
    axis = Page(run_page.render(without_oracle())).drawings["figures"]["panel-robustness"]["layout"]["xaxis"]
    assert axis["title"]["text"] == "compute (FLOPs)"


@pytest.mark.unit
def test_styles_tell_models_apart() -> None:
    models = many()["models"]
    drawn = trace_styles(models)
    assert [style.role for style in drawn[:7]] == [
        "reference",
        "suppressed",
        "undo",
        "undo",
        "undo",
        "student",
        "oracle",
    ]
    assert len({style.colour for style in drawn if style.role == "undo"}) == 20  # two families share 0.4, 0.8 and 0.9
    assert len({(style.colour, style.dash) for style in drawn}) == len(drawn)


@pytest.mark.unit
def test_area_and_landmarks() -> None:
    attack = {"steps": [0, 10, 30], "forget_heldout": {"worst": [0.0, 1.0, 1.0], "low": [None] * 3, "high": []}}
    short = {"steps": [0, 10], "forget_heldout": {"worst": [0.0, 0.5]}}
    assert attack_curves.over_attack({"attack": attack}) == (pytest.approx(25 / 30), None, None)
    assert attack_curves.landmarks([{"attack": attack}, {"attack": None}, {"attack": short}]) == (0, 0, 10)
    assert attack_curves.landmarks([{"attack": None}]) is None
    assert attack_curves.at_step({"attack": short}, 30) == (None, None, None)


@pytest.mark.unit
def test_write_is_valid_json_that_draws_the_same_page(tmp_path: Path) -> None:
    summary = with_holes()
    summary["models"][0]["forget"] = np.float32(0.5)
    page = run_page.write(summary, tmp_path / "report")
    assert sorted(path.name for path in page.parent.iterdir()) == ["index.html", "summary.json"]
    text = (page.parent / "summary.json").read_text(encoding="utf-8")
    read = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert read["models"][1]["retain"] is None and read["models"][0]["forget"] == 0.5
    assert list(read) == [*summary, "sha256"] and text.startswith("{\n ")
    again = run_page.write(read, tmp_path / "again")  # what was written draws the same page and numbers again
    assert again.read_text(encoding="utf-8") == page.read_text(encoding="utf-8")
    assert (again.parent / "summary.json").read_text(encoding="utf-8") == text


@pytest.mark.unit
@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    run_page.write(example(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="disk full"):
        run_page.write({**example(), "identity": "new"}, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.unit
def test_failed_render_touches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_page.write(example(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(run_figures, "compute", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_page.write({**example(), "identity": "new"}, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.unit
def test_render_leaves_the_summary_alone() -> None:
    summary = example()
    kept = copy.deepcopy(summary)
    run_page.render(summary)
    assert summary == kept


@pytest.mark.unit
@pytest.mark.parametrize("variant", ["full", "without_oracle", "holes", "many"])
def test_axes_say_what_they_measure_and_lines_whose_they_are(variant: str) -> None:
    """A saved picture has neither caption nor legend."""
    made = clean(VARIANTS[variant]())
    drawings = Page(run_page.render(made)).drawings
    for place, figure in drawings["figures"].items():
        assert figure["layout"]["xaxis"]["title"]["text"] and figure["layout"]["yaxis"]["title"]["text"], place
    assert set(drawings["titles"]["panel-robustness"]) == {"last", "middle", "mean"}
    ends = {note["name"]: note for note in drawings["figures"]["panel-shown"]["layout"]["annotations"]}
    assert {"maxent", "student", "oracle"} & {m["name"] for m in made["models"]} <= set(ends)
    for trace in drawings["figures"]["panel-shown"]["data"]:
        if "customdata" in trace and trace["legendgroup"] in ends:
            note = ends[trace["legendgroup"]]
            assert (note["x"], note["y"]) == (trace["x"][-1], trace["y"][-1]) and note["text"]


@pytest.mark.property
@settings(max_examples=200, deadline=None)
@given(places=st.lists(st.floats(0, 100), min_size=1, max_size=8).map(sorted), apart=st.floats(0.1, 12))
def test_labels_are_spread_no_further_than_it_takes(places: list[float], apart: float) -> None:
    out = label_places.spread(places, apart, 100.0)
    assert all(b - a >= apart - 1e-9 for a, b in itertools.pairwise(out))
    assert min(out) >= -1e-9 and max(out) <= 100 + 1e-9
    if all(b - a >= apart for a, b in itertools.pairwise(places)):
        assert out == pytest.approx(places)
    assert label_places.spread([50.0, 50.0], 10.0, 100.0) == pytest.approx([45.0, 55.0])


@pytest.mark.unit
def test_a_page_speaks_of_no_oracle_and_no_band_that_the_run_has_not() -> None:
    summary = without_oracle() | {"conclusions": [], "headline": {}, "measure": "multiple_choice", "description": ""}
    for m in summary["models"]:
        m["settings"] = {key: value for key, value in m["settings"].items() if key != "teacher"}
        for measure in ("forget_heldout", "forget_shown") if m["attack"] else ():
            m["attack"][measure] = {"worst": m["attack"][measure]["worst"]}
    page = Page(run_page.render(summary))
    words = page.text.lower() + json.dumps(page.drawings).lower()
    assert "oracle" not in words and "band" not in words and "fact" not in page.text
    assert "oracle" in Page(run_page.render(example())).text and "band" in Page(run_page.render(example())).text


@pytest.mark.unit
def test_claims_on_the_same_evidence_share_a_row() -> None:
    same = [conclusion(f"Claim {i}.", VOID, "Not shown: it was unlearned.") for i in range(14)]
    html = run_page.render({**example(), "conclusions": [*same, conclusion("Another.", VOID, "Something else.")]})
    text = Page(html).text
    assert text.count("Not shown: it was unlearned.") == 1 and all(f"Claim {i}." in text for i in range(14))
    assert html.count("∅ void") == 2 and "Of 15 claims 0 held, 0 failed, 0 open, 15 void" in text


# Run in the page after its own scripts: use every control once and write down what it did.
PROBE = """<script>
drawn.then(() => {
const seen = {}, visible = place => document.getElementById(place).data.filter(t => t.visible !== false).length;
const count = () => curves.map(visible), column = index => [...document.querySelectorAll('#models-table tbody tr')]
  .map(row => row.cells[index].dataset.value);
seen.before = count();
document.querySelector('.legend button').click();
seen.after = count();
document.querySelector('.legend button').click();
seen.again = count();
document.querySelector('.picks button[data-measure=mean]').click();
seen.measures = [...new Set(document.getElementById('panel-robustness').data
  .filter(t => t.visible !== false).map(t => t.meta.measure))];
const head = document.querySelectorAll('#models-table th[aria-sort]')[7];
head.querySelector('button').click(); seen.up = column(7);
head.querySelector('button').click(); seen.down = column(7);
const note = document.body.appendChild(document.createElement('pre'));
note.id = 'seen';
note.textContent = JSON.stringify(seen);
});
</script>"""


def browse(page: Path, profile: Path, *more: str) -> tuple[str, list[str]]:
    """Return the page's DOM after its scripts ran, and what they logged."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium on PATH")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    flags += "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1400,3000 "
    flags += "--virtual-time-budget=8000 --enable-logging=stderr --dump-dom"
    command = [browser, *flags.split(), *more, f"--user-data-dir={profile}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.end_to_end
def test_browser_draws_every_plot_and_controls_work(tmp_path: Path) -> None:
    page = run_page.write(example(), tmp_path)
    start, end, rest = page.read_text(encoding="utf-8").rpartition("</body>")
    page.write_text(start + PROBE + end + rest, encoding="utf-8")
    dom, logged = browse(page, tmp_path / "profile")
    assert logged == []
    drawn = Page(dom)
    surfaces = [a for tag, a in drawn.tags if tag == "svg" and "main-svg" in a.get("class", "")]
    assert len(surfaces) >= 5 and sum("scatterlayer" in a.get("class", "") for _, a in drawn.tags) == 5
    assert sum("js-line" in a.get("class", "") for _, a in drawn.tags) >= 3 * 7
    seen = json.loads(re.search(r'<pre id="seen">(.*?)</pre>', dom).group(1))  # type: ignore[union-attr]
    assert seen["after"] == [seen["before"][0] - 2, seen["before"][1] - 2, seen["before"][2] - 1]  # line and band
    assert seen["again"] == seen["before"] and seen["measures"] == ["mean"]
    finite = [float(value) for value in seen["up"][:-1]]
    assert finite == sorted(finite) and len(finite) == 7 and seen["up"][-1] == ""
    assert seen["down"] == [*reversed(seen["up"][:-1]), ""]


@pytest.mark.end_to_end
@pytest.mark.parametrize("variant", ["holes", "empty"])
def test_browser_logs_nothing_on_odd_reports(tmp_path: Path, variant: str) -> None:
    """In a reader's dark scheme, in which the oracle's line of nearly black is nearly white, and so are words."""
    page, dark = run_page.write(VARIANTS[variant](), tmp_path), "--blink-settings=preferredColorScheme=0"
    dom, logged = browse(page, tmp_path / "profile", dark)
    assert logged == [] and '<section id="method">' in dom
    if variant == "holes":
        assert "stroke: rgb(226, 229, 234)" in dom and "stroke: rgb(21, 24, 29)" not in dom
        assert "fill: rgb(228, 232, 238)" in dom
