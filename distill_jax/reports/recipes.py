"""What a model's recipe is: everything it was made by but the training seed, and what tells it from others.

Models of one recipe are training runs of one thing, and may be averaged; models of two may not, whatever their roles
and methods have in common.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from distill_jax.config import identity
from distill_jax.experiment.ancestry import ancestry
from distill_jax.experiment.experiment import CheckedExperiment
from distill_jax.experiment.roles import role_of
from distill_jax.io.node import Node
from distill_jax.stages import Pretrain, Unlearn
from distill_jax.stages.robust import method_key

Fields = dict[str, tuple[object, object]]  # "stage.field" -> (value, default)
SEEDS = ("seed", "seeds")
# What a run's kind, method, α, β and size already say.
SAID = ("perturb.alpha", "perturb.beta", "perturb.shrink", "distill.data", "distill.stop")
SIZE = "model."
ROUNDS = "perturb.rounds"  # how often the model was damaged on its way


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A recipe.

    Attributes:
      id: hash of the whole past but its seeds, of the model and of the data.
      world: hash of model, precision and data: recipes of one world may be compared.
      settings: "stage.field" -> value over the whole past, the model's and data's among them.
      defaults: the same fields as the program leaves them.
    """

    id: str
    world: str
    settings: Mapping[str, object]
    defaults: Mapping[str, object]

    @property
    def damages(self) -> int:
        """How often the model was damaged on its way; 1 of what never was."""
        rounds = self.settings.get(ROUNDS, 1)
        assert isinstance(rounds, int)
        return rounds

    @property
    def labeller(self) -> str | None:
        """What labelled the data, where a labeller did."""
        named = self.settings.get("data.labeller")
        return named if isinstance(named, str) else None


def recipe_of(node: Node, nodes: Mapping[str, Node], experiment: CheckedExperiment) -> Recipe:
    """Return the recipe of a node's model."""
    surroundings = {"model": experiment.model, "data": experiment.data, "precision": experiment.precision}
    world = identity(surroundings)
    each = [_fields("model", experiment.model), _fields("data", experiment.data)]
    each += [_own(nodes[name], nodes) for name in sorted(ancestry([node.name], nodes), key=lambda n: nodes[n].stage)]
    defaults = {name: default for fields in each for name, (_, default) in fields.items()}
    values: dict[str, list[object]] = collections.defaultdict(list)
    for fields in each:
        for name, (value, _) in fields.items():
            values[name].append(value)
    settings = {name: same[0] if len(set(map(repr, same))) == 1 else tuple(same) for name, same in values.items()}
    if damages := len(values.get("perturb.alpha", ())):
        settings[ROUNDS], defaults[ROUNDS] = damages, 1
    return Recipe(identity({"world": world, "past": _past(node, nodes)}), world, settings, defaults)


def _past(node: Node, nodes: Mapping[str, Node]) -> dict[str, object]:
    fields = {k: v for k, v in node.settings.fingerprint_fields().items() if k not in (*SEEDS, *node.settings.roles())}
    inputs = {role: _past(nodes[name], nodes) for role, name in node.inputs.items()}
    return {"kind": node.settings.kind, "settings": fields, "inputs": inputs}


def _own(node: Node, nodes: Mapping[str, Node]) -> Fields:
    """Return a stage's settings, under what it is called here: a method, a role of pretraining, or its kind."""
    stage = node.settings
    kind = stage.kind
    if isinstance(stage, Unlearn):
        kind = method_key(stage.method, stage.robust)
    elif isinstance(stage, Pretrain):
        kind = role_of(node, nodes)
    return _fields(kind, stage, leave_out=(*SEEDS, *stage.roles()))


def _fields(kind: str, value: object, leave_out: Sequence[str] = ()) -> Fields:
    own = [field for field in dataclasses.fields(value) if field.name not in leave_out]  # type: ignore[arg-type]
    return {f"{kind}.{field.name}": (_plain(getattr(value, field.name)), _plain(field.default)) for field in own}


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def varying(settings: Iterable[Mapping[str, object]], leave_out: Sequence[str] = ()) -> list[str]:
    """Return the names that have several values among those mappings that have them."""
    values: dict[str, set[str]] = collections.defaultdict(set)
    for each in settings:
        for name, value in each.items():
            values[name].add(repr(value))
    return sorted(name for name, seen in values.items() if len(seen) > 1 and name not in leave_out)


def differences(recipes: Sequence[Recipe]) -> dict[str, str]:
    """Return by id what tells recipes apart that are called the same, as a text; "" for what is as the program has it.

    Two that differ in nothing that a name shows (such as which model a stage starts from) get their identities.
    """
    told = varying((recipe.settings for recipe in recipes), [name for recipe in recipes for name in _sizes(recipe)])
    texts = {}
    for recipe in recipes:
        own = {name: recipe.settings[name] for name in told if name in recipe.settings}
        texts[recipe.id] = words({k: v for k, v in own.items() if v != recipe.defaults.get(k)})
    counts = collections.Counter(texts.values())
    return {key: text if counts[text] == 1 else (f"{text}, {key}" if text else key) for key, text in texts.items()}


def _sizes(recipe: Recipe) -> list[str]:
    return [name for name in recipe.settings if name.startswith(SIZE)]


def words(settings: Mapping[str, object]) -> str:
    """Return settings as a text; those of UNDO's damage without their stage."""
    return ", ".join(f"{name.removeprefix('perturb.')} = {_word(value)}" for name, value in settings.items())


def _word(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else f"{value}"
