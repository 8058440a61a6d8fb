"""Unlearning methods by name: one file each, and its line here."""

from distill_jax.stages.methods.graddiff import GradDiff
from distill_jax.stages.methods.maxent import MaxEnt
from distill_jax.stages.methods.method import UnlearningMethod
from distill_jax.stages.methods.rmu import RMU

METHODS: dict[str, type[UnlearningMethod]] = {method.name: method for method in (MaxEnt, GradDiff, RMU)}


def method_label(name: str | None) -> str:
    """Return what reports call a method."""
    return METHODS[name].label if name in METHODS else str(name)
