"""Files that the package ships beside its code, found alike in a checkout and in an installed wheel."""

from __future__ import annotations

from pathlib import Path

from distill_jax.config import check, nearest

_PACKAGE = Path(__file__).parent
CONFIGS = _PACKAGE / "configs"
SWEEPS = CONFIGS / "sweeps"
TINY = _PACKAGE / "tiny"
"""A random model of some thousand parameters, adapters to it and multiple-choice items: enough for smoke runs."""


def names(directory: Path) -> list[str]:
    """Return the names of the Python files in a directory."""
    return sorted(path.stem for path in directory.glob("*.py"))


def python_file(flag: str, name: str, directory: Path) -> Path:
    """Return the file that a flag names: one at that path, or else the shipped one of that name in `directory`.

    Raises:
      ConfigError: with the nearest name there is.
    """
    if Path(name).is_file():
        mend = f"is no Python file; name one, such as {directory.name}/{names(directory)[0]}.py"
        check(Path(name).suffix == ".py", f"{flag}: {name} {mend}")
        return Path(name)
    shipped = names(directory)
    mend = f"nor does the package ship one of that name{nearest(Path(name).stem, shipped)}; it has {', '.join(shipped)}"
    check(name in shipped, f"{flag}: there is no file {name}, {mend}")
    return directory / f"{name}.py"
