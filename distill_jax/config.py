"""What every layer needs of configuration: the user's errors, checking of settings, and identities."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

FP32 = (2.0**-126, 2.0**128 - 2.0**104)  # the least and the largest normal number
LONGEST_NAME = 200  # of 255 that file systems take; an identity follows it
_ADDRESS = re.compile(r".*://|[a-zA-Z][\w+.-]*:(/|$)|(gs|s3):", re.DOTALL)  # with one slash too, as Path writes it
# Of object storage: the library that reads such addresses, and how it is installed.
SCHEMES = {"gs": ("gcsfs", "pip install 'distill-jax[gcs]'"), "s3": ("s3fs", "pip install 'distill-jax[s3]'")}
_SURROGATE = re.compile(r"[\ud800-\udfff]")  # by which Python stands for the bytes of a path that is no UTF-8
_NAME = r"[A-Za-z0-9][A-Za-z0-9._=+-]*"


class ConfigError(ValueError):
    """Say what is wrong with the user's input and how to mend it; the program prints it and exits with 2."""


class SettingError(ConfigError):
    """Say which setting cannot have its value, and how to mend it: "alpha = 1.5: the damaged fraction lies in [0, 1]".

    Attributes:
      key: of the setting, as whoever refuses it knows it: "alpha", "stages.damaged.alpha", "undo.alphas".
      value, mend: what it has, and what it may have.
    """

    def __init__(self, key: str, value: object, mend: str):
        super().__init__(f"{key} = {value!r:.80}: {mend}")
        self.key, self.value, self.mend = key, value, mend

    def within(self, where: str) -> SettingError:
        """Return the error of a setting of a part that is known here by this name."""
        return self if self.key.startswith(f"{where}.") else SettingError(f"{where}.{self.key}", self.value, self.mend)

    @property
    def setting(self) -> str:
        """Return the name of the setting alone, without the part that it is of and the number of an element."""
        return self.key.rpartition(".")[2].partition("[")[0]


class Interrupted(Exception):
    """Say that the run was told to stop and has saved; the program exits with 42 and the same command continues it."""


class Settings:
    """Base of settings that are put together from parts, each of which checks its own.

    A part is a frozen dataclass whose `__post_init__` first calls that of the parts after it, by `super()`.
    """

    def __post_init__(self) -> None:
        """End the chain."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ' (did you mean X?)' for the known word nearest to this one, or '' if none is near."""
    found = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def check(condition: bool, message: str) -> None:
    """Raise ConfigError with the message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def check_setting(condition: bool, key: str, value: object, mend: str) -> None:
    """Raise SettingError unless the condition holds."""
    if not condition:
        raise SettingError(key, value, mend)


def check_path(where: str, path: str, *, addresses: bool = True) -> None:
    """Refuse what is neither a path, the same to every library, nor an address of object storage.

    An address that lost a slash, or of a kind that nothing here reads, would become a directory named `gs:`; of ~,
    which no shell replaces behind a `=`, TFDS makes the home directory and everything else a name.

    Args:
      addresses: whether gs:// and s3:// are read and written there.
    """
    mend = "choose an ASCII name or, if only the locale cannot read it, set PYTHONUTF8=1"
    check(not _SURROGATE.search(path), f"{where}={path!a}: this is no UTF-8, which checkpoints need; {mend}")
    if address := _ADDRESS.match(path) or _ADDRESS.match(str(Path(path))):
        scheme, _, rest = path[address.start() :].removeprefix("./").partition(":")
        mend = f"write it with two slashes, {scheme}://{rest.lstrip('/')}"
        known, has_slashes = scheme in SCHEMES, path.startswith(f"{scheme}://")
        check(has_slashes or not known, f"{where}={path}: this is an address that lost a slash; {mend}")
        mend = "mount the bucket, and give a path below where it is mounted"
        check(known and addresses, f"{where}={path}: this is an address, and only paths are read and written; {mend}")
    mend = 'the shell left the ~ of a home directory as it is; write the path out, such as "$HOME/runs"'
    check(not str(Path(path)).startswith("~"), f"{where}={path}: {mend}")


def check_name(where: str, name: object) -> None:
    """Refuse a name that cannot be part of a path everywhere."""
    good = isinstance(name, str) and re.fullmatch(_NAME, name) and len(name) <= LONGEST_NAME
    mend = f"a name has letters, digits and . _ = + -, begins with a letter or digit, and has {LONGEST_NAME} at most"
    check(bool(good), f"{where} = {name!r:.80}: it names a directory; {mend}")


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Construct a settings dataclass, naming unknown keys, wrong types and bad values as `where.key`.

    Raises:
      ConfigError: for a key the dataclass lacks (with the nearest it has) or a value it refuses.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key, value in values.items():
        if key not in fields:  # the nearest is looked for only then: it takes longer than all the rest
            raise ConfigError(f"{where}.{key}: unknown setting{nearest(key, fields)}; known: {', '.join(fields)}")
        _check_type(f"{where}.{key}", fields[key].type, value)
    try:
        return cls(**values)
    except SettingError as error:
        raise error.within(where) from error
    except (TypeError, ValueError) as error:
        named = str(error).startswith(f"{where}.")  # such as "model.heads = 3 is not a multiple of …"
        raise ConfigError(str(error) if named else f"{where}: {error}") from error


_TYPES = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}


def _check_type(where: str, annotation: Any, value: Any) -> None:
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)  # a string in most modules
    kind, _, inner = text.partition("[")
    expected = (tuple, list) if kind == "tuple" else _TYPES.get(kind)
    wrong = expected is not None and not isinstance(value, expected)
    wrong |= isinstance(value, bool) and kind in ("int", "float")
    if wrong:
        raise SettingError(where, value, f"expected {kind}, got {type(value).__name__}")
    if isinstance(value, tuple | list):
        for i, element in enumerate(value):
            _check_type(f"{where}[{i}]", inner.removesuffix(", ...]"), element)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise SettingError(where, value, "must be finite; nothing is computed with NaN or infinity")
        if value and not FP32[0] <= abs(value) <= FP32[1]:
            mend = "nothing is computed in more than fp32, whose numbers go from 1.2e-38 to 3.4e38"
            raise SettingError(where, value, mend)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise SettingError(where, value, "does not fit into 64 bits; lower it")


def identity(value: Any) -> str:
    """Return 12 hex digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=_plain).encode()).hexdigest()[:12]


def added(default: T) -> T:
    """Declare a field that came after identities were given: while it has its default, they stay what they were."""
    return dataclasses.field(default=default, metadata={"added": True})


def described(value: Any) -> dict[str, Any]:
    """Return a dataclass as its identity knows it: without `added` fields that have their default."""
    added = [field for field in dataclasses.fields(value) if field.metadata.get("added")]
    left_out = {field.name for field in added if getattr(value, field.name) == field.default}
    return {name: part for name, part in dataclasses.asdict(value).items() if name not in left_out}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return described(value)
    raise TypeError(f"{type(value).__name__} has no canonical form")
