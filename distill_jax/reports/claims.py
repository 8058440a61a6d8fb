"""The paper's claims that a run can test, each decided from its models' scores by a rule of its own.

A rule compares models on held-out facts after the whole attack (of a model to be released, at the step of it at which
most came back: `Model.at_worst`), paired by attacker's seed and by fact, with the luck of training added
(`statistics/estimates.py`), and says which premises its sentence rests on. `judge` asks them all, also those on UNDO
(`claims_undo.py`) and on the attack itself (`claims_known_truth.py`); what a run has no models for is NOT_RUN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from distill_jax.evals.scale import ACCURACY, Scale
from distill_jax.experiment.roles import Role
from distill_jax.reports import premises
from distill_jax.reports.attacked import Run, ends
from distill_jax.reports.claims_known_truth import finds_hidden, finds_nothing_erased
from distill_jax.reports.claims_undo import cheaper, slows_with_alpha, steps_grow
from distill_jax.reports.premises import Model, difference, effect, finite, kept, suppressed
from distill_jax.stages.methods import METHODS
from distill_jax.stages.robust import method_label
from distill_jax.statistics.conclusions import Conclusion, Effect, conclude, not_run


def judge(models: Sequence[Model], scale: Scale = ACCURACY) -> list[Conclusion]:
    """Return what every rule comes to, in a fixed order; a run without any attack set out to show nothing."""
    run = Run(models, scale)
    if not run.models:
        return []
    conclusions = [suppression(run), *(distilling_helps(run, method) for method in _methods(run))]
    conclusions += [slows_with_alpha(run), steps_grow(run)]
    conclusions += [cheaper(run, "schedule"), cheaper(run, "first_passage")]
    conclusions += [needs_unlearning(run), matching_start(run), matching_oracle(run)]
    if run.first(Role.LOCKED) or run.first(Role.ERASED):
        conclusions += [finds_hidden(run), finds_nothing_erased(run)]
    if any(len(m.by_weights) > 1 for m in run.models):
        conclusions.append(precision(run))
    return conclusions


def _methods(run: Run) -> list[str]:
    """Return the methods of the run's models; of one that was made robust in training, that is one of its own."""
    used = dict.fromkeys(model.method for model in run.models if model.method)
    return sorted(used, key=lambda method: list(METHODS).index(method) if method in METHODS else len(METHODS))


def suppression(run: Run) -> Conclusion:
    """Fine-tuning hides: what it hid comes back, though the attacker was never shown it."""
    name, scale, item = "suppression", run.scale, run.scale.item
    model = next(filter(None, (run.first(Role.SUPPRESSED, method) for method in _methods(run))), None)
    claim = f"Unlearning by fine-tuning only suppressed: a short attack on {model.label if model else 'such a model'} "
    claim += f"brings back {item}s that the attacker was never shown."
    reference, oracle = run.reference, run.oracle
    if not model or not reference:
        return not_run(name, claim, "suppressed model" if not model else "reference")
    if scale.chance_level is None and not oracle:
        return not_run(name, claim, "oracle")
    assert model.before and model.after
    if oracle:
        beyond = difference(model, oracle, scale, more_than=scale.margin)
    else:
        terms = [(1.0, model.after)]
        title = f"{model.label}, of the held-out {item}s"
        beyond = effect(
            title, terms, scale, "above", scale.sign * (scale.chance_level or 0.0) + scale.margin, 1, scale.run_sd
        )
    when = model.when if model.worst_step else f"after {model.attack_steps} steps"
    text = f"{model.label}: held-out {item}s {model.before.value:.2f} before the attack, {model.after.value:.2f} "
    text += f"{when}; {reference.label} {reference.forget:.2f}. Held when more than {scale.margin:g} beyond"
    text += " an oracle after the same attack." if oracle else " one that knows nothing."
    text = f"{text} {premises.at_once(model.after.steps)}".rstrip()
    shared = [
        finite([model, reference, *([oracle] if oracle else [])]),
        premises.able(reference, oracle, scale),
        suppressed(model, reference, oracle, scale),
        kept(model, reference, scale),
        *(run.ignorant(oracle, reference) if oracle else []),
        premises.teaches(model, scale),
    ]
    return conclude(name, claim, premises=shared, effects=[beyond], evidence=text)


def distilling_helps(run: Run, method: str) -> Conclusion:
    """A random student of a suppressed model gives less back than that model."""
    name = f"distilling {method}"
    claim = f"Distilling into a random student makes {method_label(method)} more robust than unlearning alone."
    student, teacher = run.first(Role.RANDOM_STUDENT, method), run.first(Role.SUPPRESSED, method)
    reference = run.reference
    if not student or not teacher or not reference:
        return not_run(name, claim, f"{method_label(method)} model with its student and the reference")
    shared = run.shared(teacher, reference, [student])
    gap = difference(teacher, student, run.scale, more_than=0.0)
    return conclude(name, claim, premises=shared, effects=[gap], evidence=ends(run, teacher, student))


def needs_unlearning(run: Run) -> Conclusion:
    """A student of the reference has the ability before any attack, and after it."""
    name = "unlearning needed"
    claim = "It is unlearning and distilling together: distilling the reference alone passes the capability on."
    student, control = run.first(Role.RANDOM_STUDENT), run.first(Role.REFERENCE_STUDENT)
    reference, teacher = run.reference, run.get(student.teacher) if student else None
    if not student or not control or not reference or not teacher:
        return not_run(name, claim, "student distilled from the reference beside one from a suppressed model")
    shared = run.shared(teacher, reference, [student, control])
    effects = [
        difference(control, student, run.scale, more_than=2 * run.scale.margin, at="before"),
        difference(control, student, run.scale, more_than=0.0),
    ]
    text = f"Forget {run.scale.name} before any attack: {control.forget:.2f}. {ends(run, control, student)}"
    return conclude(name, claim, premises=shared, effects=effects, evidence=text)


def matching_start(run: Run) -> Conclusion:
    """Of two students matched to the oracle, the one that began as the reference relearns faster."""
    claim = "Equal outputs are not equal knowledge: matched to the oracle, a student that began as the reference "
    claim += "relearns faster than a random one."

    def compare(begun: Model, fresh: Model, oracle: Model) -> Effect:
        return difference(begun, fresh, run.scale, more_than=0.0)

    return _matching(run, "matching, start", claim, compare)


def matching_oracle(run: Run) -> Conclusion:
    """A random student matched to the oracle relearns no faster than the oracle."""
    claim = "Matched to the oracle, a random student relearns no faster than the oracle."

    def compare(begun: Model, fresh: Model, oracle: Model) -> Effect:
        return difference(fresh, oracle, run.scale, at_most=run.scale.margin)

    return _matching(run, "matching, oracle", claim, compare)


def _matching(run: Run, name: str, claim: str, compare: Callable[[Model, Model, Model], Effect]) -> Conclusion:
    begun, fresh = run.first(Role.MATCHED_REFERENCE), run.first(Role.MATCHED_STUDENT)
    oracle, reference = run.oracle, run.reference
    if not begun or not fresh or not oracle or not reference:
        return not_run(name, claim, "oracle-matching pair with oracle and reference")
    scale, pair = run.scale, (begun, fresh)
    shared = [finite([begun, fresh, reference]), premises.able(reference, oracle, scale)]
    shared += [*run.ignorant(oracle, reference), *(kept(m, reference, scale) for m in pair)]
    shared += [] if scale.chance_level is None else [suppressed(m, reference, oracle, scale) for m in pair]
    shared.append(run.attack_works)
    text = ends(run, begun, fresh, oracle)
    return conclude(name, claim, premises=shared, effects=[compare(begun, fresh, oracle)], evidence=text)


def precision(run: Run) -> Conclusion:
    """The same attack on the same models, with weights kept in fp32 and in bf16: the mean over models."""
    claim = "An attack whose weights are kept in bf16 alone brings back less than it could."
    both = [m for m in run.models if {"float32", "bfloat16"} <= set(m.by_weights)]
    if not both:
        return not_run("precision", claim, "attack in both")
    share = 1 / len(both)
    terms = [(s * share, m.by_weights[k]) for m in both for s, k in ((1.0, "float32"), (-1.0, "bfloat16"))]
    gap = effect("fp32 − bf16, mean over models", terms, run.scale, "above")
    each = [(m.label, *(m.by_weights[kind].value for kind in ("float32", "bfloat16"))) for m in both]
    parts = "; ".join(f"{label} {full:.2f} in fp32, {half:.2f} in bf16" for label, full, half in each)
    shared = [finite(both), run.attack_works]
    text = f"Held-out {run.scale.item}s after the attack: {parts}."
    return conclude("precision", claim, premises=shared, effects=[gap], evidence=text)
