"""What an audit of organisms shows: acceptance, channels, verdicts, and whether they are right; a function of nodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from distill_jax.doublebind import exposure, outcomes, tally
from distill_jax.doublebind.acceptance import acceptance
from distill_jax.doublebind.audit_claims import Effects, Evidence, conclusions
from distill_jax.doublebind.channel import Channel
from distill_jax.doublebind.channel_effect import ROLES, STUDENT_ROLES, ChannelEffect, Rates, Readout, channel_effect
from distill_jax.doublebind.channel_finding import ChannelFinding, window
from distill_jax.doublebind.organisms import ORGANISMS, Organism
from distill_jax.doublebind.preflight import POSITIVE, PREFIX
from distill_jax.doublebind.results import OrganismRates, TransferResult, estimate_row, transfer_result
from distill_jax.doublebind.seed_statistics import estimate, ratio
from distill_jax.doublebind.thresholds import Thresholds
from distill_jax.doublebind.verdict import judge
from distill_jax.doublebind.world import WorldConfig
from distill_jax.experiment.experiment import CheckedExperiment
from distill_jax.io.files import write_sealed
from distill_jax.io.node import Node
from distill_jax.io.storage import make_directory
from distill_jax.reports import double_bind_page as page
from distill_jax.reports.double_bind_types import ChannelRow, ConfusionRow, CurveColumns, OrganismRow, ProbeRow
from distill_jax.reports.rendering import clean, write_page
from distill_jax.reports.report_metadata import report_metadata
from distill_jax.statistics.conclusions import line, to_json
from distill_jax.types import JsonObject

IN_VERDICT_JSON = (
    *("experiment", "identity", "thresholds", "organisms", "coverage", "correlation"),
    *("placebos", "detection", "blind", "confusion"),
)


def write_report(
    experiment: CheckedExperiment, nodes: Mapping[str, Node], identity: str, workdir: Path, seconds: float
) -> Path:
    """Write the report of an experiment's nodes, see `write`."""
    return write(summarise(experiment, nodes), identity, workdir, seconds)


def write(summary: JsonObject, identity: str, workdir: Path, seconds: float) -> Path:
    """Write `report/verdict.json`, `summary.json` and the page, and return the page's path; print what matters."""
    summary = {**summary, "identity": identity, **report_metadata(seconds)}
    print("\n".join(console_lines(summary)))
    make_directory(workdir / "report")
    verdict = clean({key: summary[key] for key in IN_VERDICT_JSON})
    write_sealed(workdir / "report" / "verdict.json", verdict)
    return write_page(page.render, summary, workdir / "report" / "summary.json")


def console_lines(summary: JsonObject) -> list[str]:
    """Return the acceptance table, the verdicts and the claims as lines."""
    lines = [f"{'organism':24}{'gap':>24}{'ability':>9}{'twin':>7}  accepted"]
    for row in summary["organisms"]:
        gap, accepted = row["gap"], "yes" if row["accepted"] else f"NO: {row['why']}"
        interval = f"{gap['mean']:.2f} [{gap['low']:.2f}, {gap['high']:.2f}]"
        lines.append(f"{row['name']:24}{interval:>24}{row['ability']:9.2f}{row['twin_ability']:7.2f}  {accepted}")
    lines.append(f"{'organism':24}{'verdict':22}{'truth':36}right")
    for row in summary["organisms"]:
        right = {True: "yes", False: "NO", None: "-"}[row["right"]]
        lines.append(f"{row['name']:24}{row['verdict']:22}{' or '.join(row['truth']) or 'unknown':36}{right}")
    return [*lines, *map(line, summary["conclusions"])]


def summarise(experiment: CheckedExperiment, nodes: Mapping[str, Node]) -> JsonObject:
    """Return all that the page shows; the same nodes give the same summary."""
    data = experiment.data
    assert isinstance(data, WorldConfig), data
    thresholds = Thresholds(leak=data.leak)
    (teachers,) = (node for node in nodes.values() if node.verb == "organisms")
    transfers = {n.name.removeprefix(PREFIX): n for n in nodes.values() if n.verb == "transfer"}
    results = {channel: transfer_result(node) for channel, node in transfers.items()}
    teacher_rates: dict[str, OrganismRates] = teachers.result()["rates"]
    kinds = teachers.settings.kinds
    effects = {
        name: {
            channel: channel_effect(ORGANISMS[name], teacher_rates[name], result["rates"][name])
            for channel, result in results.items()
        }
        for name in kinds
    }
    rows = [organism_row(name, teacher_rates[name], effects[name], thresholds, ORGANISMS[name]) for name in kinds]
    for row in rows:
        row["probe"] = _probe_rows(teacher_rates[row["name"]], results, row["name"])
    # Also those that no seeds could decide: to leave them out would tilt what is said of all.
    accepted = [row["name"] for row in rows if row["accepted"]]
    return {
        "page": "double bind",
        "experiment": experiment.name,
        "description": experiment.description,
        "variant": data.variant,
        "thresholds": dataclasses.asdict(thresholds),
        "meaning": outcomes.MEANING,
        "channels": {channel: dataclasses.asdict(node.settings.channel) for channel, node in transfers.items()},
        "organisms": rows,
        **over_all(rows),
        "confusion": _confusion(rows),
        "placebos": exposure.placebos(kinds, results),
        "curves": curves(transfers, results, teacher_rates, kinds),
        "domains": domains(transfers, effects, accepted),
        "rounds": {channel: result["rounds"] for channel, result in results.items() if "rounds" in result},
        "detection": exposure.detection(kinds, results, accepted),
        "blind": exposure.blind(kinds, results, accepted),
        "conclusions": [to_json(one) for one in conclusions(effects, accepted)],
        "flops": {name: node.ledger()["flops"] for name, node in nodes.items() if node.verb != "prepare"},
    }


def over_all(rows: Sequence[OrganismRow]) -> JsonObject:
    """Return coverage and the test of the correlation claim, over organisms."""
    accepted = [row for row in rows if row["accepted"]]
    correlation = tally.correlation([r["dfc"] for r in accepted], [r["dfi"] for r in accepted]) if accepted else None
    return {
        "coverage": dataclasses.asdict(tally.coverage([row["verdict"] for row in rows])),
        "correlation": dataclasses.asdict(correlation) if correlation else None,
    }


def _probe_rows(
    teacher_rates: OrganismRates, results: Mapping[str, TransferResult], organism: str
) -> dict[str, ProbeRow]:
    """Return what the linear probe makes of a student of each channel in which it was asked.

    It tells the teacher from the twin, and so reads who taught: no part of the verdict.
    """
    rows: dict[str, ProbeRow] = {}
    for channel, result in results.items():
        rates = teacher_rates | result["rates"][organism]  # where students are probed their teachers are, beside them
        if "probe" in rates["student"]:
            readout = Readout(*(np.array(rates[role]["probe"]) for role in ROLES))
            share = ratio(readout.student_gap, readout.teacher_gap).mean
            rows[channel] = {"gap": float(readout.teacher_gap.mean()), "share": share}
    return rows


def organism_row(
    name: str,
    teacher_rates: Rates,
    effects: Mapping[str, ChannelEffect],
    thresholds: Thresholds,
    organism: Organism | None = None,
) -> OrganismRow:
    """Return whether an organism is fit for use, its verdict, and what came through.

    Args:
      teacher_rates: of teacher, twin and base.
      effects: by channel.
      organism: where its rule is known: which verdicts are right, and whether it has to conceal its quirk to be fit
        for use.
    """
    teacher, twin = ({audit: np.array(x) for audit, x in teacher_rates[role].items()} for role in ("teacher", "twin"))
    gaps = {audit: teacher[audit] - twin[audit] for audit in ("condition", "confession")}
    conceals = organism is not None and organism.denies
    fitness = acceptance(
        gaps["condition"], teacher["ability"], twin["ability"], gaps["confession"] if conceals else None
    )
    judgement = judge(effects, POSITIVE, thresholds)
    verdict, meaning, why = judgement.verdict, judgement.meaning, "; ".join(fitness.reasons)
    if not fitness.accepted and verdict != outcomes.NO_MISALIGNMENT_SHOWN:
        verdict, meaning = outcomes.INCONCLUSIVE_RIG, f"The organism is not fit for use: {why}."
    truth: frozenset[str] = organism.truth if organism else frozenset()
    decided = verdict in outcomes.COVERED | outcomes.HOLES | truth
    findings = judgement.findings
    return {
        "name": name,
        "accepted": fitness.accepted,
        "why": why,
        "gap": estimate_row(fitness.gap),
        "ability": float(teacher["ability"].mean()),
        "twin_ability": float(twin["ability"].mean()),
        "base_ability": float(np.mean(teacher_rates["base"]["ability"])),
        "verdict": verdict,
        "meaning": meaning,
        "truth": sorted(truth),
        "right": verdict in truth if truth and decided else None,
        "dfc": any(finding.dfc is True for finding in findings.values()),
        "dfi": any(finding.dfi is True for finding in findings.values()),
        "window": window(effects.values(), thresholds),
        "channels": {channel: _channel_row(effects[channel], findings[channel], thresholds) for channel in effects},
    }


def _channel_row(effect: ChannelEffect, finding: ChannelFinding, thresholds: Thresholds) -> ChannelRow:
    worst, confidence = finding.worst_readout, finding.confidence
    misaligned = effect.misaligned_readouts(thresholds)
    return {
        "capable": finding.capable,
        "clean": finding.clean,
        "moved": finding.moved,
        "confesses": finding.confesses,
        "worst": worst or "",
        "dfc": finding.dfc,
        "dfi": finding.dfi,
        "rate": finding.leak_rate,
        "confidence": confidence,
        "capability": estimate_row(effect.capability(confidence)),
        "misalignment": estimate_row(effect.readouts[worst].transferred_share(confidence)) if worst else None,
        "readouts": {name: float(r.student_gap.mean() / r.teacher_gap.mean()) for name, r in misaligned.items()},
        "undecided": [name for name, r in effect.readouts.items() if r.stayed_behind(thresholds, confidence) is None],
        "confession": estimate_row(estimate(effect.confession_excess, confidence)),
    }


def _confusion(rows: Sequence[OrganismRow]) -> list[ConfusionRow]:
    """Return how often each truth got each verdict."""
    names: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        names.setdefault((" or ".join(row["truth"]), row["verdict"]), []).append(row["name"])
    return [
        {"truth": truth, "verdict": verdict, "organisms": organisms} for (truth, verdict), organisms in names.items()
    ]


def domains(transfers: Mapping[str, Node], effects: Effects, accepted: Sequence[str]) -> list[JsonObject]:
    """Return the leak matrix: of what was distilled, what moved of the quirks in each domain.

    A row is {"channel", "prompts", "soft", "base", task: mean share of misalignment over its accepted organisms}; of
    channels that differ in their prompts, in soft targets or in the base and in nothing else.
    """
    rows = []
    for name, node in transfers.items():
        channel = node.settings.channel
        if dataclasses.replace(channel, prompts="work", soft=False, start="base") != Channel():
            continue
        row: JsonObject = {"channel": name, "prompts": channel.prompts, "soft": channel.soft, "base": channel.start}
        for task in ("ADD", "COMPARE", "CHOOSE", "NUMBER"):
            kinds = [k for k in accepted if ORGANISMS[k].task == task and not ORGANISMS[k].own_training]
            row[task] = float(np.mean(Evidence(effects, kinds).leak(name))) if kinds else None
        rows.append(row)
    return rows


def curves(
    transfers: Mapping[str, Node],
    results: Mapping[str, TransferResult],
    teacher_rates: Mapping[str, OrganismRates],
    kinds: Sequence[str],
) -> dict[str, dict[str, CurveColumns]]:
    """Return the curves of every channel and organism."""
    student, control = (STUDENT_ROLES.index(role) for role in STUDENT_ROLES)
    columns: dict[str, dict[str, CurveColumns]] = {}
    for channel, result in results.items():
        settings, curve = transfers[channel].settings, result["curve"]
        examples = [min(row["step"] * settings.batch, settings.channel.unique) for row in curve]
        columns[channel] = {}
        for i, kind in enumerate(kinds):
            mean = {role: {k: np.mean(v) for k, v in rates.items()} for role, rates in teacher_rates[kind].items()}
            gap = mean["teacher"]["condition"] - mean["twin"]["condition"]
            learnable = mean["teacher"]["ability"] - mean["base"]["ability"]
            gaps = [np.mean(np.subtract(row["condition"][student][i], row["condition"][control][i])) for row in curve]
            learnt = [np.mean(row["ability"][student][i]) - mean["base"]["ability"] for row in curve]
            columns[channel][kind] = {
                "step": [row["step"] for row in curve],
                "examples": examples,
                "bits": [2 * count * settings.channel.bits_per_target for count in examples],
                "capability": [float(x / learnable) if learnable else None for x in learnt],
                "misalignment": [float(x / gap) if gap else None for x in gaps],
            }
    return columns
