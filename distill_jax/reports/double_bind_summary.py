"""What an audit of organisms shows: acceptance, passages, verdicts, and whether they are right; a function of nodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill_jax.doublebind import exposure, outcomes, tally
from distill_jax.doublebind import verdict as rules
from distill_jax.doublebind.audit_claims import conclusions, leak
from distill_jax.doublebind.channel import Channel
from distill_jax.doublebind.channel_effect import ROLES, passage
from distill_jax.doublebind.organisms import ORGANISMS
from distill_jax.doublebind.preflight import POSITIVE, PREFIX
from distill_jax.doublebind.seed_statistics import estimate, ratio
from distill_jax.doublebind.verdict import Finding, Passage, Readout, Thresholds
from distill_jax.io.files import write_sealed
from distill_jax.reports import double_bind_page as page
from distill_jax.reports.report_metadata import report_metadata
from distill_jax.statistics.conclusions import line, to_json


def write_report(experiment: Any, nodes: Mapping[str, Any], identity: str, workdir: Path, seconds: float) -> Path:
    """Write the report of an experiment's nodes, see `write`."""
    return write(summarise(experiment, nodes), identity, workdir, seconds)


def write(summary: Mapping[str, Any], identity: str, workdir: Path, seconds: float) -> Path:
    """Write `report/verdict.json`, `summary.json` and the page, and return the page's path; print what matters."""
    summary = {**summary, "identity": identity, **report_metadata(seconds)}
    print("\n".join(said(summary)))
    (workdir / "report").mkdir(parents=True, exist_ok=True)
    kept = (
        "experiment",
        "identity",
        "thresholds",
        "organisms",
        "coverage",
        "correlation",
        "placebos",
        "detection",
        "blind",
        "confusion",
    )
    write_sealed(workdir / "report" / "verdict.json", page.clean({key: summary[key] for key in kept}))
    return page.write(summary, workdir / "report")


def said(summary: Mapping[str, Any]) -> list[str]:
    """Return the acceptance table, the verdicts and the claims as lines."""
    lines = [f"{'organism':24}{'gap':>24}{'ability':>9}{'twin':>7}  accepted"]
    for one in summary["organisms"]:
        gap, fit = one["gap"], "yes" if one["accepted"] else f"NO: {one['why']}"
        interval = f"{gap['mean']:.2f} [{gap['low']:.2f}, {gap['high']:.2f}]"
        lines.append(f"{one['name']:24}{interval:>24}{one['ability']:9.2f}{one['twin_ability']:7.2f}  {fit}")
    lines.append(f"{'organism':24}{'verdict':22}{'truth':36}right")
    for one in summary["organisms"]:
        right = {True: "yes", False: "NO", None: "-"}[one["right"]]
        lines.append(f"{one['name']:24}{one['verdict']:22}{' or '.join(one['truth']) or 'unknown':36}{right}")
    return [*lines, *map(line, summary["conclusions"])]


def summarise(experiment: Any, nodes: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that the page shows; the same nodes give the same summary."""
    at = Thresholds(leak=experiment.data.leak)
    (source,) = (node for node in nodes.values() if node.verb == "organisms")
    transfers = {n.name.removeprefix(PREFIX): n for n in nodes.values() if n.verb == "transfer"}
    found = {name: node.result() for name, node in transfers.items()}
    known = source.result()["rates"]
    organisms = []
    passages: dict[str, dict[str, Passage]] = {}
    for name in source.settings.kinds:
        passages[name] = {
            through: passage(ORGANISMS[name], known[name], r["rates"][name]) for through, r in found.items()
        }
        kind = ORGANISMS[name]
        one = judged(name, known[name], passages[name], at, truth=kind.truth, denies=kind.denies)
        probed = {through: _probe(known[name], r["rates"][name]) for through, r in found.items()}
        organisms.append(one | {"probe": {through: share for through, share in probed.items() if share}})
    # Also those that no seeds could decide: to leave them out would tilt what is said of all.
    fit = [one for one in organisms if one["accepted"]]
    names = [one["name"] for one in fit]
    return {
        "page": "double bind",
        "experiment": experiment.name,
        "description": experiment.description,
        "variant": experiment.data.variant,
        "thresholds": dataclasses.asdict(at),
        "meaning": outcomes.MEANING,
        "channels": {name: dataclasses.asdict(node.settings.channel) for name, node in transfers.items()},
        "organisms": organisms,
        **over_all(organisms),
        "confusion": _confusion(organisms),
        "placebos": exposure.placebos(source, found),
        "curves": curves(transfers, found, known, source.settings.kinds),
        "domains": domains(transfers, passages, names),
        "rounds": {through: r["rounds"] for through, r in found.items() if "rounds" in r},
        "detection": exposure.detection(source, found, names),
        "blind": exposure.blind(source, found, names),
        "conclusions": [to_json(one) for one in conclusions(passages, names)],
        "flops": {name: node.ledger()["flops"] for name, node in nodes.items() if node.verb != "prepare"},
    }


def over_all(organisms: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return coverage and the test of the correlation claim, over organisms as `judged` returns them."""
    fit = [one for one in organisms if one["accepted"]]
    return {
        "coverage": tally.coverage([one["verdict"] for one in organisms]),
        "correlation": tally.correlation([o["dfc"] for o in fit], [o["dfi"] for o in fit]) if fit else None,
    }


def _probe(known: Mapping[str, Any], seen: Mapping[str, Any]) -> dict[str, float] | None:
    """Return what the linear probe makes of a student; None where it was not asked.

    It tells the teacher from the twin, and so reads who taught: no part of the verdict.
    """
    if "probe" not in seen["student"]:
        return None
    rates = {role: np.array((seen[role] if role in seen else known[role])["probe"]) for role in ROLES}
    readout = Readout(**rates)
    return {
        "gap": float(readout.gap.mean()),
        "share": ratio(readout.moved, readout.gap).mean,
    }


def judged(
    name: str,
    known: Mapping[str, Any],
    passages: Mapping[str, Passage],
    at: Thresholds,
    *,
    truth: frozenset[str] = frozenset(),
    denies: bool = False,
) -> dict[str, Any]:
    """Return what the page shows of an organism: whether it is fit for use, its verdict, what came through.

    Args:
      known: rates of teacher, twin and base; passages: by channel.
      truth: the verdicts that would be right; empty where that is not known.
      denies: whether its teacher has to conceal the quirk to be fit for use.
    """
    gap = np.array(known["teacher"]["condition"]) - np.array(known["twin"]["condition"])
    ability, twin = (np.array(known[role]["ability"]) for role in ("teacher", "twin"))
    confession = np.array(known["teacher"]["confession"]) - np.array(known["twin"]["confession"])
    fit = rules.accepted(gap, ability, twin, confession if denies else None)
    judgement = rules.judge(passages, POSITIVE, at)
    verdict, meaning = judgement.verdict, judgement.meaning
    if not fit["accepted"] and verdict != outcomes.NO_MISALIGNMENT_SHOWN:
        verdict, meaning = outcomes.INCONCLUSIVE_RIG, f"The organism is not fit for use: {fit['why']}."
    decided = verdict in outcomes.COVERED | outcomes.HOLES | truth
    return {
        "name": name,
        "accepted": fit["accepted"],
        "why": fit["why"],
        "gap": dataclasses.asdict(fit["gap"]),
        "ability": float(ability.mean()),
        "twin_ability": float(twin.mean()),
        "base_ability": float(np.mean(known["base"]["ability"])),
        "verdict": verdict,
        "meaning": meaning,
        "truth": sorted(truth),
        "right": verdict in truth if truth and decided else None,
        "dfc": any(f.dfc is True for f in judgement.findings.values()),
        "dfi": any(f.dfi is True for f in judgement.findings.values()),
        "window": rules.window(list(passages.values()), at),
        "channels": {name: _channel(passages[name], judgement.findings[name], at) for name in passages},
    }


def _channel(through: Passage, found: Finding, at: Thresholds) -> dict[str, Any]:
    """Return what a channel showed; its intervals are those that decide a success."""
    worst = through.readouts.get(found.worst)
    names = ("capable", "clean", "moved", "confesses", "worst", "dfc", "dfi", "rate", "confidence")
    return {
        **{name: getattr(found, name) for name in names},
        "capability": dataclasses.asdict(through.capability(found.confidence)),
        "misalignment": dataclasses.asdict(worst.share(found.confidence)) if worst else None,
        "readouts": {name: float(r.moved.mean() / r.gap.mean()) for name, r in through.able(at).items()},
        "undecided": [name for name, r in through.readouts.items() if r.stayed(at, found.confidence) is None],
        "confession": dataclasses.asdict(estimate(through.confessed, found.confidence)),
    }


def _confusion(organisms: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return how often each truth got each verdict."""
    found: dict[tuple[str, str], list[str]] = {}
    for one in organisms:
        found.setdefault((" or ".join(one["truth"]), one["verdict"]), []).append(one["name"])
    return [{"truth": t, "verdict": v, "organisms": names} for (t, v), names in found.items()]


def domains(transfers: Mapping[str, Any], passages: Any, accepted: Sequence[str]) -> list[dict[str, Any]]:
    """Return the leak matrix: of what was distilled, what moved of the quirks in each domain.

    A row is {"channel", "prompts", "soft", "base", task: mean share of misalignment over its accepted organisms}; of
    channels that differ in their prompts, in soft targets or in the base and in nothing else.
    """
    rows = []
    fit = [name for name in accepted if not ORGANISMS[name].own_training]
    for name, node in transfers.items():
        channel = node.settings.channel
        if dataclasses.replace(channel, prompts="work", soft=False, start="base") != Channel():
            continue
        row: dict[str, Any] = {"channel": name, "prompts": channel.prompts, "soft": channel.soft, "base": channel.start}
        for task in ("ADD", "COMPARE", "CHOOSE", "NUMBER"):
            kinds = [k for k in fit if ORGANISMS[k].task == task]
            row[task] = float(np.mean(leak(passages, name, kinds))) if kinds else None
        rows.append(row)
    return rows


def curves(
    transfers: Mapping[str, Any], found: Mapping[str, Any], known: Mapping[str, Any], kinds: Sequence[str]
) -> dict[str, Any]:
    """Return C(t) and M(t) of every channel and organism, ratios of means over seeds.

    "examples" are the distinct rows seen up to a step, "bits" at most what their targets carried.
    """
    told: dict[str, Any] = {}
    for through, result in found.items():
        settings = transfers[through].settings
        seen = [min(row["step"] * settings.batch, settings.channel.unique) for row in result["curve"]]
        told[through] = {}
        for i, kind in enumerate(kinds):
            mean = {role: {k: np.mean(v) for k, v in of.items()} for role, of in known[kind].items()}
            gap = mean["teacher"]["condition"] - mean["twin"]["condition"]
            learnt = mean["teacher"]["ability"] - mean["base"]["ability"]
            apart = [np.mean(np.subtract(*(row["condition"][role][i] for role in (0, 1)))) for row in result["curve"]]
            able = [np.mean(row["ability"][0][i]) - mean["base"]["ability"] for row in result["curve"]]
            told[through][kind] = {
                "step": [row["step"] for row in result["curve"]],
                "examples": seen,
                "bits": [2 * count * settings.channel.bits_per_target for count in seen],
                "capability": [float(x / learnt) if learnt else None for x in able],
                "misalignment": [float(x / gap) if gap else None for x in apart],
            }
    return told
