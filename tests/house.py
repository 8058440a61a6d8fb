"""Count what makes code hard to read: `python -m tests.house` prints it for each room of the package and in total.

A figure per thousand lines counts all lines of the files, blank ones and comments included. `PyTree` and `JsonObject`
are `Any` by a name that says which: they have a column of their own.
"""

from __future__ import annotations

import ast
import collections
import dataclasses
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "distill_jax"
MANY_PARAMETERS = 6
ALIASES = ("PyTree", "JsonObject")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclasses.dataclass(frozen=True)
class Figures:
    """Counts of some files.

    Attributes:
      any, aliases, lambdas, reflection: names `Any`, names `ALIASES`, lambda expressions, and calls of `hasattr` or
        `getattr`, a thousand lines.
      many_parameters: functions of MANY_PARAMETERS parameters or more, `self` and `cls` left out.
      file_lines, function_lines: medians.
    """

    files: int
    lines: int
    any: float
    aliases: float
    lambdas: float
    reflection: float
    many_parameters: int
    file_lines: float
    function_lines: float


def measure(paths: Iterable[Path]) -> Figures:
    """Return the figures of some Python files."""
    texts = [path.read_text() for path in paths]
    trees = [ast.parse(text) for text in texts]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    functions = [node for node in nodes if isinstance(node, FUNCTIONS)]
    names = collections.Counter(node.id for node in nodes if isinstance(node, ast.Name))
    lengths = [text.count("\n") for text in texts]
    per_thousand = 1000 / max(sum(lengths), 1)
    return Figures(
        files=len(texts),
        lines=sum(lengths),
        any=per_thousand * names["Any"],
        aliases=per_thousand * sum(names[alias] for alias in ALIASES),
        lambdas=per_thousand * sum(isinstance(node, ast.Lambda) for node in nodes),
        reflection=per_thousand * sum(map(is_reflection, nodes)),
        many_parameters=sum(parameters(function) >= MANY_PARAMETERS for function in functions),
        file_lines=statistics.median(lengths or [0]),
        function_lines=statistics.median([(f.end_lineno or f.lineno) - f.lineno + 1 for f in functions] or [0]),
    )


def is_reflection(node: ast.AST) -> bool:
    """Return whether a node calls `hasattr` or `getattr`."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("hasattr", "getattr")


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the parameters of a function, without a method's own object or class."""
    names = [arg.arg for arg in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def rooms(package: Path = PACKAGE) -> Iterator[tuple[str, list[Path]]]:
    """Yield each folder of the package and its files; those of the package itself come first."""
    by_room: dict[str, list[Path]] = collections.defaultdict(list)
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).parts
        by_room[parts[0] if len(parts) > 1 else "."].append(path)
    yield from sorted(by_room.items())


def names_twice(package: Path = PACKAGE) -> list[str]:
    """Return the names that more than one file of the package has."""
    counts = collections.Counter(path.name for path in package.rglob("*.py"))
    return sorted(name for name, count in counts.items() if count > 1 and not name.startswith("__"))


def many_parameter_functions(paths: Iterable[Path]) -> Iterator[str]:
    """Yield `path:line name(count)` of each function of MANY_PARAMETERS parameters or more."""
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, FUNCTIONS) and (count := parameters(node)) >= MANY_PARAMETERS:
                yield f"{path.relative_to(PACKAGE.parent)}:{node.lineno} {node.name}({count})"


def main() -> None:
    """Print the figures of each room, those of the package, and what exceeds."""
    print("room         files  lines    Any  alias lambda getattr 6 par.  file   def")
    everything = list(PACKAGE.rglob("*.py"))
    for name, paths in [*rooms(), ("all", everything)]:
        f = measure(paths)
        ratios = f"{f.any:6.1f} {f.aliases:6.1f} {f.lambdas:6.1f} {f.reflection:7.1f} {f.many_parameters:6}"
        print(f"{name:12} {f.files:5} {f.lines:6} {ratios} {f.file_lines:5.0f} {f.function_lines:5.0f}")
    print(f"\nfile names that stand twice: {', '.join(names_twice()) or 'none'}")
    print(f"functions of {MANY_PARAMETERS} parameters or more:")
    print("\n".join(f"  {line}" for line in many_parameter_functions(sorted(everything))))


if __name__ == "__main__":
    main()
