"""The figures of the double bind's page: ability against misalignment, and both over the student's steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distill_jax.reports import plotly_layout
from distill_jax.reports.double_bind_tables import mean
from distill_jax.reports.double_bind_types import CurveColumns
from distill_jax.reports.plotly_layout import Figure, plotly_text

PANELS = {  # place: (heading, words)
    "phase": (
        "Ability against misalignment",
        "One line a channel, from the student’s first step to its last, mean over organisms. Right and low is what a "
        "developer wants: the ability without the quirk.",
    ),
    "steps": ("Over the student’s steps", "Solid: ability. Dotted: misalignment. Hover for the channel."),
}
COLOURS = (
    "#26148a", "#b0287a", "#0b7a5b", "#d55e00", "#7a6a1f", "#1f6fb2", "#8b1a1a", "#5b5f97", "#2f9e44", "#727a86",
)  # fmt: skip


@dataclass(frozen=True)
class ChannelCurve:
    """What moved through one channel over its student's steps, as means over organisms."""

    name: str
    colour: str
    steps: Sequence[int]
    capability: list[float | None]
    misalignment: list[float | None]


def figures(curves: Mapping[str, Mapping[str, CurveColumns]]) -> dict[str, Figure]:
    """Return the figures of a summary's curves, by channel and organism; none without a curve."""
    known = _mean_curves(curves)
    return {"phase": _phase(known), "steps": _over_steps(known)} if known else {}


def _mean_curves(curves: Mapping[str, Mapping[str, CurveColumns]]) -> list[ChannelCurve]:
    means = []
    for index, (name, by_organism) in enumerate(curves.items()):
        each = [*by_organism.values()]
        if each and each[0]["step"]:
            capability, misalignment = (
                [mean(values) for values in zip(*columns, strict=True)]
                for columns in ([one["capability"] for one in each], [one["misalignment"] for one in each])
            )
            if not any(value is not None for value in capability):
                continue
            colour = COLOURS[index % len(COLOURS)]
            means.append(ChannelCurve(name, colour, each[0]["step"], capability, misalignment))
    return means


def _phase(curves: Sequence[ChannelCurve]) -> Figure:
    traces = [
        {
            "type": "scatter", "mode": "lines+markers", "name": plotly_text(curve.name),
            "x": curve.capability, "y": curve.misalignment,
            "marker": {"size": [5] * (len(curve.steps) - 1) + [11], "color": curve.colour},
            "line": {"width": 1.6, "color": curve.colour},
            "text": [f"step {step}" for step in curve.steps],
            "hovertemplate": f"<b>{plotly_text(curve.name)}</b>, %{{text}}<br>ability %{{x:.2f}}, misalignment "
            "%{y:.2f}<extra></extra>",
        }
        for curve in curves
    ]  # fmt: skip
    titles = ("C, share of the ability", "M, share of the misalignment")
    figure = plotly_layout.figure(traces, *titles, y_range=(-0.15, 1.1))
    figure["layout"]["xaxis"]["range"] = [-0.1, 1.1]
    figure["layout"]["yaxis"]["tickformat"] = ".1f"
    figure["layout"] |= {"showlegend": True, "legend": {"orientation": "h", "y": -0.2}}
    return figure


def _over_steps(curves: Sequence[ChannelCurve]) -> Figure:
    traces = [
        {
            "type": "scatter", "mode": "lines", "name": plotly_text(curve.name), "x": curve.steps, "y": values,
            "line": {"dash": dash, "width": 1.6, "color": curve.colour},
            "hovertemplate": f"<b>{plotly_text(curve.name)}</b> {key}, step %{{x}}: %{{y:.2f}}<extra></extra>",
        }
        for curve in curves
        for key, values, dash in (("C", curve.capability, "solid"), ("M", curve.misalignment, "dot"))
    ]  # fmt: skip
    figure = plotly_layout.figure(traces, "student’s step", "share of the teacher’s", y_range=(-0.15, 1.1))
    figure["layout"]["yaxis"]["tickformat"] = ".1f"
    return figure
