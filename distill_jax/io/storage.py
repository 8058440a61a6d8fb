"""The one door to stored files: paths of a file system, and addresses of object storage (gs://, s3://), alike.

`location` makes a path of either: a `pathlib.Path`, or an `epath.Path`, which has the same methods (`exists`,
`is_file`, `iterdir`, `glob` without **, `open` to read, `read_text`, `unlink`, `name`, `parent`, `/`). What differs
between the two is a function here, or in `io.staging`:

                    on a file system                        in a bucket
  write_atomic      temporary file, fsync, rename           one upload: an object is whole or not there
  create_exclusive  hard link, which only one can make      upload on the condition that there is no such object
  replace_if        has its own ways                        upload on the condition that it still is of a version
  version           inode, size and times                   generation (gs), entity tag and time (s3)
  digests           SHA-256 of what is read                 the MD5 that the server keeps, or else the same
  growing           the file itself                         a local file, uploaded whole from time to time
  uploading         the place itself                        a local place, uploaded when it is complete
  local_copy        the file itself                         a copy in a local cache of bounded size
"""

from __future__ import annotations

import base64
import contextlib
import errno
import functools
import glob as globbing
import hashlib
import io
import os
import pathlib
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from typing import IO, Any, cast

from distill_jax import console
from distill_jax.config import SCHEMES, ConfigError, check
from distill_jax.types import JsonObject

Path = pathlib.Path  # or an epath.Path, of which mypy is told nothing: see `location`
Version = tuple[int | str, ...]
# For epath, which asks once, perhaps for a local path: TensorFlow takes 13 s to import, and has credentials of its own.
os.environ["EPATH_USE_TF"] = "false"
SILENT_SECONDS = 4.0  # for which the first answer of a bucket may be waited for without a word


def location(where: str | os.PathLike[str]) -> Path:
    """Return a path, or an address of object storage as something with a path's methods.

    Raises:
      ConfigError: if the library that reads such addresses is not installed.
    """
    text = os.fspath(where)
    scheme = text.partition("://")[0]
    return _remote(text, scheme) if scheme in SCHEMES and "://" in text else pathlib.Path(text)


def is_local(path: Path) -> bool:
    """Return whether a path is one of a file system."""
    return isinstance(path, pathlib.Path)


def resolved(path: Path) -> Path:
    """Return a path without links; an address has none."""
    return path.resolve() if is_local(path) else path


def absolute(path: Path) -> Path:
    """Return a path that does not depend on the current directory."""
    return path.absolute() if is_local(path) else path


def check_output(where: str, path: Path, kind: str) -> None:
    """Refuse a path of a file system at which no file, or no directory, can be written.

    Args:
      kind: "file" or "directory".

    Raises:
      ConfigError: naming `where` and what is in the way.
    """
    if not is_local(path):
        return
    if path.exists():
        check(path.is_dir() == (kind == "directory"), f"{where}: exists and is no {kind}; choose another name")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    check(parent.is_dir(), f"{where}: {parent} is a file; name a {kind} below a directory")
    check(os.access(parent, os.W_OK), f"{where}: {parent} may not be written to; name a {kind} elsewhere")


def check_access(path: Path, flag: str) -> None:
    """Refuse an address to work at whose bucket is not there or cannot be read; a path is looked at when it is used.

    Raises:
      ConfigError: naming the flag, the address and the mend.
    """
    if is_local(path):
        return
    scheme, bucket = str(path).partition("://")[0], path.parts[2] if len(path.parts) > 2 else ""
    check(bool(bucket), f"{flag}={path}: an address names a bucket, such as {scheme}://bucket/run")
    try:
        with console.patience(f"{flag}={path}: waiting for an answer", SILENT_SECONDS):
            _system(path).first_names(str(path))
    except FileNotFoundError as error:
        how = {"gs": "gcloud storage buckets create", "s3": "aws s3 mb"}[scheme]
        mend = f"make it ({how} {scheme}://{bucket}), or name one that is there"
        raise ConfigError(f"{flag}={path}: there is no such bucket; {mend}") from error
    except OSError as error:
        raise ConfigError(f"{flag}={path}: {error.strerror or error}") from error


def check_processes(workdir: Path, processes: int) -> None:
    """Refuse several processes of one run where Orbax cannot have each write its part of the training states.

    Raises:
      ConfigError: naming the work directory and the mend.
    """
    mend = "name gs://BUCKET/DIRECTORY or a path that all hosts mount, or run one process"
    together = processes == 1 or holds_arrays(workdir)
    check(
        together, f"--workdir={workdir}: {processes} processes cannot write training states to s3:// together; {mend}"
    )


def holds_arrays(path: Path) -> bool:
    """Return whether Orbax writes and reads training states at a place; elsewhere copies of them are made."""
    return is_local(path) or str(path).startswith("gs://")


@functools.cache
def _prepare(scheme: str) -> None:
    """Bring the library of a scheme, and have epath (and Orbax, by it) use it as we do."""
    library, mend = SCHEMES[scheme]
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # which asks another service, by gRPC
    import fsspec

    try:
        if scheme == "gs":
            from distill_jax.io.google_storage import Bucket
        else:
            from distill_jax.io.amazon_storage import Bucket
        for name in ("gs", "gcs") if scheme == "gs" else (scheme,):
            fsspec.register_implementation(name, Bucket, clobber=True)
    except ImportError as error:
        raise ConfigError(f"{scheme}://: {library} is not installed, which reads such addresses; {mend}") from error


def _remote(text: str, scheme: str) -> Path:
    _prepare(scheme)
    from etils import epath

    return cast(Path, epath.Path(text))


def _system(path: Path) -> Any:
    """Return the fsspec file system of an address."""
    import fsspec

    scheme = str(path).partition("://")[0]
    return fsspec.filesystem("gcs" if scheme == "gs" else scheme)


# Writing


def make_directory(path: Path) -> None:
    """Make a directory and its parents unless they are there; a bucket has none."""
    if is_local(path):
        path.mkdir(parents=True, exist_ok=True)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file's contents in one step, durable under its name before the call returns."""
    if not is_local(path):
        _system(path).pipe_file(str(path), data)
        return
    with replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file to write to, which becomes that of the path in one step at the end, durable under its name."""
    if not is_local(path):
        with tempfile.NamedTemporaryFile(prefix="distill-jax-") as file:
            yield file
            file.flush()
            _system(path).put_file(file.name, str(path))
        return
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with naming(path):
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync(path.parent)
    finally:
        with contextlib.suppress(OSError):  # of the directory too, if that is what went wrong
            temporary.unlink(missing_ok=True)


def create_exclusive(path: Path, data: bytes) -> bool:
    """Make a file unless there is one, which of all callers everywhere only one can; return whether it was this one.

    Args:
      data: no other caller's, so that a request whose answer was lost is known by it.
    """
    if not is_local(path):
        try:
            _system(path).pipe_file(str(path), data, mode="create")
        except FileExistsError:
            return read_bytes(path) == data
        return True
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    draft.write_bytes(data)
    try:
        with needed(path.parent, "hard links, by which workers agree who computes what"):
            os.link(draft, path)
    except FileExistsError:
        # A network file system that asked twice says so of its own first success.
        if draft.stat().st_nlink == 1:
            return False
    finally:
        draft.unlink()
    sync(path.parent)  # or a power cut could have the name given out again
    return True


def replace_if(path: Path, old: Version, data: bytes) -> bool:
    """Replace an object if it still is of a version; return whether it was. A path has its own ways."""
    return bool(_system(path).replace_if(str(path), str(old[0]), data))


def touch(path: Path) -> None:
    """Give a file a new version, with the same contents."""
    if is_local(path):
        os.utime(path)  # no new bytes: it succeeds on a full disk
    else:
        _system(path).pipe_file(str(path), read_bytes(path))


def copy(path: Path, to: Path) -> None:
    """Copy a file; within object storage the server does it."""
    if is_local(path) and is_local(to):
        shutil.copy2(path, to)
        sync(to)
    elif is_local(path):
        _system(to).put_file(str(path), str(to))
    elif is_local(to):
        _system(path).get_file(str(path), str(to))
    else:
        _system(path).cp_file(str(path), str(to))


def remove_tree(path: Path) -> None:
    """Remove a directory and all in it, as far as it can be."""
    if is_local(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            _system(path).rm(str(path), recursive=True)


@contextlib.contextmanager
def needed(directory: Path, what: str) -> Iterator[None]:
    """Raise ConfigError where a file system does not have what it is asked for."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.ENOSYS, errno.EPERM, errno.ENOLCK):
            raise
        mend = "name a directory on another one or, of a bucket that is mounted, its address"
        raise ConfigError(f"{directory}: its file system has no {what}; {mend}") from error


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in the OSError of a write that fails."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = str(path)
        raise


def sync(path: Path) -> None:
    """Flush a file's contents, or the names in a directory, to the disk: a rename survives a power cut only then."""
    if not is_local(path):
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that syncs no directories
            raise
    finally:
        os.close(handle)


def free_bytes(directory: Path) -> float:
    """Return how many bytes a file system has left; of a bucket infinity."""
    return shutil.disk_usage(directory).free if is_local(directory) else float("inf")


# Reading


def read_bytes(path: Path) -> bytes:
    """Return a file's contents; of an object by one request."""
    return path.read_bytes() if is_local(path) else bytes(_system(path).cat_file(str(path)))


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file to read, as Python's own `open` does: fsspec's files lack a part of it, such as `readline(limit)`."""
    file = path.open("rb")
    return cast(IO[bytes], file if is_local(path) else io.BufferedReader(cast(Any, file), 2**20))


def is_file(path: Path) -> bool:
    """Return whether there is a file; of an object by one request."""
    try:
        return path.is_file() if is_local(path) else bool(version(path))
    except FileNotFoundError:
        return False


def version(path: Path, max_age: float = 0.0) -> Version:
    """Return what changes with whatever writes to a file.

    Args:
      max_age: seconds for which an object that was there may be taken as it was, and no request is made.

    Raises:
      FileNotFoundError: if there is none.
    """
    if is_local(path):
        about = os.stat(path)
        return about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns
    known, at = _versions.get(path, ((), -float("inf")))
    if time.monotonic() - at > max_age:
        known = _version(_system(path).metadata(str(path)))
        _versions[path] = known, time.monotonic()
    return known


_versions: dict[Path, tuple[Version, float]] = {}  # of objects, and when they were asked for


def _version(info: JsonObject) -> Version:
    if "generation" in info:
        return str(info["generation"]), int(info["size"])
    # An entity tag is of the contents alone, and `touch` leaves them as they were.
    return str(info["ETag"]), int(info["size"]), f"{info['LastModified']:%Y-%m-%dT%H:%M:%S}"


def versions(directory: Path) -> dict[str, Version]:
    """Return the versions of all files below a directory, by name."""
    if is_local(directory):
        return {str(path.relative_to(directory)): version(path) for path in files(directory)}
    return {name: _version(info) for name, info in _objects(directory).items()}


def names(directory: Path) -> list[str]:
    """Return the names in a directory; none if there is no such directory."""
    try:
        return os.listdir(directory) if is_local(directory) else [path.name for path in directory.iterdir()]
    except FileNotFoundError:
        return []


def files(directory: Path) -> list[Path]:
    """Return all files below a directory, sorted."""
    if is_local(directory):
        return sorted(pathlib.Path(folder, name) for folder, _, names in os.walk(directory) for name in names)
    return sorted(directory / name for name in _objects(directory))


def _objects(directory: Path) -> dict[str, JsonObject]:
    """Return what the server says of each object below an address, by its name relative to that."""
    found = _system(directory).find(str(directory), detail=True)
    start = len(str(directory).partition("://")[2].rstrip("/")) + 1  # an object's own name, in full, gives ""
    return {name[start:]: info for name, info in found.items() if not name.endswith("/")}


def digest(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's contents."""
    with location(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_like(path: Path, other: str) -> str:
    """Return a file's digest of the kind that another one is: "md5:…" or SHA-256."""
    if not other.startswith("md5:"):
        return digest(path)
    with path.open("rb") as file:
        return f"md5:{hashlib.file_digest(file, 'md5').hexdigest()}"


def server_digests(directory: Path) -> dict[str, str]:
    """Return the digest of every object below an address, by relative name: "md5:…" as the server keeps it.

    Nothing is read again for that. Of one without an MD5, as it was composed of several, it is the SHA-256.
    """
    return {
        name: f"md5:{base64.b64decode(info['md5Hash']).hex()}" if "md5Hash" in info else digest(directory / name)
        for name, info in _objects(directory).items()
    }


def glob(pattern: str) -> list[str]:
    """Return the files of a pattern in the order of their names; a name without wildcards is its own."""
    if not globbing.has_magic(pattern):
        return [pattern]
    place = location(pattern)
    if is_local(place):
        return sorted(globbing.glob(pattern))
    return sorted(f"{pattern.partition('://')[0]}://{name}" for name in _system(place).glob(pattern))


def is_readable(path: Path) -> bool:
    """Return whether this process may read a file; an object's server says so when it is read."""
    return os.access(path, os.R_OK) if is_local(path) else True


def size(path: Path) -> int:
    """Return how many bytes a file has."""
    return int(version(path)[1])
