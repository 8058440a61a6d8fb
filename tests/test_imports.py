"""Imports point one way, and the heavy packages stay behind their one or two files."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parent.parent
FILES = {str(path.relative_to(ROOT)): path.read_text() for path in sorted(ROOT.glob("distill_jax/**/*.py"))}

# From the ground up: a part imports those before it, and itself.
LAYERS = (
    *("types", "units", "exit_codes", "console", "config", "shipped"),
    *("sharding", "backend"),  # what JAX runs on, and where arrays live
    *("io", "losses", "models", "perf", "data"),  # a loss sees logits or hidden states, never a model
    *("evals", "statistics", "interop", "train"),  # a measurement takes parameters, not the loop that made them
    *("stages", "doublebind", "experiment", "reports"),
    *("api", "bench", "commands", "main", "__main__"),
)
APART = {  # what a part does not import although it is below
    "losses": {"io"},
    "models": {"io"},
    "data": {"losses", "models", "perf", "sharding"},
    "train": {"evals", "statistics", "interop"},
    "bench": {"doublebind", "experiment", "reports", "api"},
}

# Reached lazily, by data/arithmetic/prepare_arithmetic.py and prepare_text.py.
TASKS = {
    f"distill_jax/data/{name}.py" for name in ("arithmetic/seqio_tasks", "arithmetic/tfds_builder", "text/text_tasks")
}
TENSORFLOW = (
    "seqio",
    "tensorflow",
    "tensorflow_datasets",
    "tensorflow_text",
    "clu",
)  # clu: its writers import TensorFlow
ONLY_IN = {**dict.fromkeys(TENSORFLOW, TASKS), "orbax": {"distill_jax/io/checkpoint.py"}}


def imported(path: str, source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of each import, wherever it stands; lazy ones and those by name count."""
    here = Path(path).parts[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*here[: len(here) - node.level + 1]] if node.level else []
            base += (node.module or "").split(".") if node.module else []
            yield from ((node.lineno, ".".join([*base, alias.name])) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from ((node.lineno, str(name.value)) for name in node.args[:1] if isinstance(name, ast.Constant))


def violations(path: str, source: str) -> list[str]:
    """Return what `source`, standing at `path`, imports and may not, one line each."""
    part = Path(path).parts[1].removesuffix(".py")
    if part == "__init__":
        below = {"api"}  # lazily: importing the package costs nothing
    elif part in LAYERS:
        below = {*LAYERS[: LAYERS.index(part) + 1]} - APART.get(part, set())
    else:
        return [f"{path}: {part} is in no layer: say in LAYERS where it belongs"]
    found = []
    for line, name in imported(path, source):
        root, *rest = name.split(".")
        if root == "distill_jax" and rest and rest[0] in LAYERS and rest[0] not in below:
            found.append(f"{path}:{line}: {part} may not import {rest[0]}")
        if root in ONLY_IN and path not in ONLY_IN[root]:
            found.append(f"{path}:{line}: only {', '.join(sorted(ONLY_IN[root]))} may import {root}")
    return found


def test_imports_point_one_way():
    assert FILES
    assert [line for path, source in FILES.items() for line in violations(path, source)] == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("distill_jax/losses/cross_entropy.py", "from distill_jax.models import transformer"),
        ("distill_jax/losses/cross_entropy.py", "from ..models.transformer import apply"),
        ("distill_jax/losses/cross_entropy.py", "from .. import models"),
        ("distill_jax/evals/bits_per_byte.py", "def f():\n    import distill_jax.train.loop"),
        ("distill_jax/train/loop.py", "from distill_jax import stages"),
        ("distill_jax/stages/distill.py", "from distill_jax.experiment.graph import Node"),
        ("distill_jax/config.py", "import importlib\nimportlib.import_module('distill_jax.experiment.graph')"),
        ("distill_jax/experiment/graph.py", "from ..main import main"),
        ("distill_jax/data/arithmetic/prepare_arithmetic.py", "import tensorflow.data"),
        ("distill_jax/io/metrics.py", "from clu import metric_writers"),
        ("distill_jax/train/loop.py", "import orbax.checkpoint as ocp"),
        ("distill_jax/utils.py", ""),
    ],
)
def test_a_violation_is_found(path, source):
    assert len(violations(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "distill_jax/losses/cross_entropy.py",
            "from . import distillation\nfrom distill_jax.losses import unlearning",
        ),
        ("distill_jax/perf/flops.py", "from distill_jax.models import transformer"),
        ("distill_jax/doublebind/stages/transfer_stage.py", "from distill_jax.stages.perturb import damage"),
        ("distill_jax/experiment/graph.py", "from .. import config, stages"),
        ("distill_jax/data/arithmetic/seqio_tasks.py", "import seqio\nimport tensorflow_datasets as tfds"),
        ("distill_jax/io/checkpoint.py", "import orbax.checkpoint as ocp"),
    ],
)
def test_what_is_allowed_is_not_found(path, source):
    assert violations(path, source) == []


def test_the_entry_point_imports_no_tensorflow():
    code = "import sys, distill_jax.main; print([name for name in sys.argv[1:] if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code, *TENSORFLOW[:4]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


SILENCERS = {"setLevel", "disable", "set_verbosity", "filterwarnings", "simplefilter", "captureWarnings"}


def silencers(source: str) -> list[int]:
    """Return the lines on which a module, as it is imported, silences a logger or warnings."""
    lines, todo = [], list(ast.parse(source).body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in SILENCERS:
            lines.append(node.lineno)
        todo += ast.iter_child_nodes(node)
    return lines


def test_importing_a_module_silences_nobody():
    assert silencers("import logging\nif True:\n    logging.getLogger('absl').setLevel(50)") == [3]
    assert silencers("def quiet():\n    logging.disable()") == []
    assert {path: lines for path, source in FILES.items() if (lines := silencers(source))} == {}
