"""What a run's report calls its models: by what they are, and by their stage's name where two are the same."""

from __future__ import annotations

from collections.abc import Mapping

from distill_jax.experiment.roles import Provenance, Role
from distill_jax.stages.robust import method_label

# The stage that left the model that is to be mended -> what it is called.
REFERENCES = {"pretrain": "Reference (all data)", "import": "Original model", "finetune": "Taught model"}


def labels(models: Mapping[str, Provenance]) -> dict[str, str]:
    """Return the label of each model by its name; no two are equal."""
    undone = [made.method for made in models.values() if made.role is Role.UNDO]
    named: dict[str, str] = {}
    for name, made in models.items():
        label = _label(name, made)
        if made.role is Role.UNDO and made.method != undone[0]:
            label += f" of {method_label(made.method)}"
        named[name] = f"{label} ({name})" if label in named.values() else label
    return named


def _label(name: str, made: Provenance) -> str:
    method = method_label(made.method)
    match made.role:
        case Role.REFERENCE:
            return REFERENCES[made.kind]
        case Role.ORACLE:
            return "Oracle (retain data only)" if made.kind == "pretrain" else "Oracle (before teaching)"
        case Role.SUPPRESSED:
            return f"{method}, suppressed"
        case Role.RANDOM_STUDENT:
            return f"Random student of {method}"
        case Role.REFERENCE_STUDENT:
            return "Random student of the reference"
        case Role.UNDO | Role.UNDAMAGED:
            return f"UNDO α = {made.alpha:g}"
        case Role.ROUTING:
            return "Gradients routed, part not cut off"
        case Role.ROUTED:
            return "Gradient routing"
        case Role.NOISE_ONLY:
            return f"Noise without shrinking, αβ = {(made.alpha or 0) * (made.beta or 0):g}"
        case Role.LOCKED:
            return "Password-locked model"
        case Role.ERASED:
            return "Erased model"
        case Role.MATCHED_REFERENCE:
            return "Reference matched to the oracle"
        case Role.MATCHED_STUDENT:
            return "Random student matched to the oracle"
    return name
