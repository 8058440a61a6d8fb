"""A disk whose power is cut: what was synced is there, and of the rest whatever chance leaves."""

from __future__ import annotations

import os
import random
import resource
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

WATCHED = ("fsync", "replace", "rename", "unlink")  # calls before which the power may go
CHANCE = 0.15  # of each


class Disk:
    """Watch a directory, and at random calls write down what a power cut there and then could leave of it.

    A file has the contents of its last fsync, or those it has now, or a part of what came between. A directory's name
    is what it was at the directory's last fsync, or what it is now, each by itself: no order is kept that was not asked
    for. Only Python's own fsyncs are seen; what libraries sync counts as not synced. A kill is the cut by which
    nothing is lost.

    Attributes:
      images: the directories that cuts left.
    """

    def __init__(self, root: Path, images: Path, chance: random.Random):
        self.root = root
        self.images: list[Path] = []
        self._to, self._chance, self._lock = images, chance, threading.RLock()
        self._contents: dict[int, bytes] = {}  # of an inode, when it was last synced
        self._names: dict[Path, dict[str, int]] = {}  # of a directory, when it was last synced
        self._open: list[int] = []  # an inode that is held open is not given to another file
        self._real: dict[str, Callable[..., Any]] = {}
        self._busy = False

    def __enter__(self) -> Disk:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        for folder, _, files in os.walk(self.root):
            self._synced(Path(folder))
            for name in files:
                self._synced(Path(folder, name))
        for name in WATCHED:
            self._real[name] = getattr(os, name)
            setattr(os, name, self._watch(name))
        return self

    def __exit__(self, *_: object) -> None:
        for name, real in self._real.items():
            setattr(os, name, real)
        for handle in self._open:
            os.close(handle)

    def _watch(self, name: str) -> Callable[..., Any]:
        def watched(*arguments: Any, **how: Any) -> Any:
            with self._lock:
                if self._busy:
                    return self._real[name](*arguments, **how)
                self._busy = True
                try:
                    if self._chance.random() < CHANCE:
                        self.images.append(self._to / f"{len(self.images):03}-before-{name}")
                        self._leave(self.root, self.images[-1])
                    done = self._real[name](*arguments, **how)
                    if name == "fsync":
                        self._synced(Path(os.readlink(f"/proc/self/fd/{arguments[0]}")))
                    return done
                finally:
                    self._busy = False

        return watched

    def _synced(self, path: Path) -> None:
        if not path.is_relative_to(self.root) or not path.exists():
            return
        if path.is_dir():
            self._names[path] = self._listed(path)
            return
        self._open.append(os.open(path, os.O_RDONLY))
        self._contents[os.fstat(self._open[-1]).st_ino] = path.read_bytes()

    def _listed(self, folder: Path) -> dict[str, int]:
        with os.scandir(folder) as found:
            return {entry.name: entry.inode() for entry in found if entry.is_file() or entry.is_dir()}

    def _leave(self, folder: Path, to: Path) -> None:
        """Write down what a cut leaves of a directory."""
        to.mkdir(parents=True)
        then, now = self._names.get(folder, {}), self._listed(folder) if folder.is_dir() else {}
        for name in sorted({*then, *now}):
            inode = self._chance.choice([then.get(name), now.get(name)])
            path = folder / name
            here = inode is not None and now.get(name) == inode and path.exists()
            if inode is None:
                continue
            if (here and stat.S_ISDIR(path.stat().st_mode)) or path in self._names:
                self._leave(path, to / name)
            else:
                (to / name).write_bytes(self._remains(inode, path.read_bytes() if here else None))

    def _remains(self, inode: int, now: bytes | None) -> bytes:
        then = self._contents.get(inode, b"")
        if now is None:
            return then
        return self._chance.choice([then, now, now[: self._chance.randint(min(len(then), len(now)), len(now))]])
