"""What a user names may lie in a bucket: only `io/storage.py` and `io/staging.py` open it."""

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parent.parent
MEND = (
    "use distill_jax.io.storage: location(where) for Path(where), location(where).open() or read_bytes to read, "
    "write_atomic or replacing to write, remove_tree, make_directory, names, files, glob, is_file, size, version; of "
    "distill_jax.io.staging local_input for a library that needs a real file, uploading for one that writes many"
)
OS = {
    *("replace", "rename", "renames", "link", "symlink", "unlink", "remove", "removedirs", "rmdir", "makedirs"),
    *("mkdir", "listdir", "scandir", "stat", "walk", "open", "fsync", "truncate", "utime"),
}
OS_PATH = {"exists", "isfile", "isdir", "getsize", "getmtime", "lexists", "samefile", "realpath"}
# Files that touch only what is on this machine for certain, and why.
EXCEPTIONS = {
    "io/storage.py": "the door itself",
    "io/staging.py": "local files that stand for objects",
    "io/attempts.py": "a file system's renames and links; in a bucket others take their place",
    "io/leases.py": "a file system's locks, and /proc; in a bucket others take their place",
    "io/metrics.py": "the local file that stands for an object that grows",
    "data/atomic_build.py": "a directory in which data are built, which is on this machine",
    "config.py": "looks at how a path is spelt, and opens nothing",
    "shipped.py": "files of the package",
    "backend.py": "/proc and /sys",
    "console.py": "/dev/null",
    "data/import_tf.py": "/dev/null",
    "perf/memory.py": "/proc",
    "experiment/compile_process.py": "a temporary directory of this machine",
    "perf/analysis_cache.py": "a cache of this machine",
    "experiment/slice_plan.py": "a name that stands for a work directory, of which nothing is read",
    "reports/card.py": "names without their directories",
    "train/driver.py": "stands for no directory",
}
FILES = {
    str(path.relative_to(ROOT / "distill_jax")): path.read_text() for path in sorted(ROOT.glob("distill_jax/**/*.py"))
}


def touches(source: str) -> list[str]:
    """Return the calls that open, make, move, remove or look at files other than through storage."""
    return [
        f"{node.lineno}: {ast.unparse(node)[:80]}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and _touches(node)
    ]


def _touches(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    module, _, function = name.rpartition(".")
    if name in ("Path", "pathlib.Path"):
        return [ast.unparse(argument) for argument in call.args] != ["__file__"]
    if module == "os.path":
        return function in OS_PATH
    return name in ("open", "io.open") or module in ("shutil", "glob") or (module == "os" and function in OS)


def test_nothing_but_storage_touches_files():
    found = {path: calls for path, source in FILES.items() if path not in EXCEPTIONS and (calls := touches(source))}
    assert found == {}, MEND


def test_no_exception_is_idle():
    assert {path for path in EXCEPTIONS if not touches(FILES[path])} == set()


@pytest.mark.parametrize(
    "source",
    ["open('x')", "Path(flags.workdir)", "pathlib.Path()", "os.replace(a, b)", "shutil.rmtree(a)", "glob.glob(a)"],
)
def test_a_call_past_storage_is_found(source):
    assert len(touches(source)) == 1


@pytest.mark.parametrize("source", ["location(x).open()", "Path(__file__)", "os.path.join(a, b)", "os.environ.get(a)"])
def test_what_touches_no_file_is_not_found(source):
    assert touches(source) == []
