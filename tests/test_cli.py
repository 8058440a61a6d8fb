"""Wrong input and a disk that refuses: exit code 2, a line or two that name the thing and the mend, nothing lost."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from test_run import ROOT, SETTINGS, Runs, assert_same_run, finished_run, forget

from distill_jax.experiment import graph
from distill_jax.io.files import write_sealed
from distill_jax.main import main
from tests.faults import hostile_cases
from tests.programs import node
from tests.spoil import cut, fill, flip, largest, shared, small_disk

SMOKE = "--config=configs/arithmetic.py:smoke"

# What is typed after `run`, and what the message must hold.
TYPED: dict[str, tuple[list[str], list[str]]] = {
    "no config": ([], ["--config=FILE.py", "missing", "configs/arithmetic.py"]),
    "missing file": (["--config=configs/arithmetik.py:cpu"], ["configs/arithmetik.py", "no file"]),
    "directory": (["--config=configs"], ["--config=configs", "no file"]),
    "bad preset": (["--config=configs/arithmetic.py:cpuu"], ["no preset 'cpuu'", "cpu, smoke, full and truth"]),
    "unknown key": ([SMOKE, "--config.relearn.stepz=5"], ["config.relearn.stepz", "did you mean 'steps'"]),
    "unknown section": ([SMOKE, "--config.modle.hidden=3"], ["config.modle", "did you mean 'model'"]),
    "unlike any key": ([SMOKE, "--config.relearn.qqqq=5"], ["config.relearn.qqqq", "learning_rates"]),
    "unknown flag": ([SMOKE, "--wrkdir=x"], ["wrkdir", "workdir"]),
    "no value": ([SMOKE, "--config.seed"], ["config.seed", "whole number"]),
    "stray word": ([SMOKE, "hello"], ["'hello'", "--config.key=value"]),
    "text for a number": ([SMOKE, "--config.relearn.steps=abc"], ["config.relearn.steps=abc", "whole number"]),
    "fraction for a count": ([SMOKE, "--config.relearn.steps=2.5"], ["config.relearn.steps=2.5", "whole number"]),
    "text for a share": (
        [SMOKE, "--config.undo.alphas=(0.2,'a')"],
        ["config.undo.alphas[1] = 'a'", "expected number", "str"],
    ),
    "beyond fp32": ([SMOKE, "--config.reference.learning_rate=1e39"], ["learning_rate = 1e+39", "fp32", "3.4e38"]),
    "nothing in fp32": ([SMOKE, "--config.relearn.learning_rates=(1e-50,)"], ["learning_rates = (1e-50,)", "fp32"]),
    "too many": ([SMOKE, "--config.data.equations=1000000000000"], ["data.equations=1000000000000", "100000000"]),
    "heads": (
        [SMOKE, "--config.model.heads=3", "--config.model.kv_heads=2"],
        ["model.heads = 3", "not a multiple of model.kv_heads = 2"],
    ),
    "dtype": ([SMOKE, "--config.model.dtype=int8"], ["model.dtype = 'int8'", "choose float32 or bfloat16"]),
    "microbatches": (
        [SMOKE, "--config.relearn.batch=5", "--config.relearn.microbatches=2"],
        ["batch = 5", "microbatches = 2", "such as 6"],
    ),
    "no steps": ([SMOKE, "--config.relearn.steps=0"], ["steps = 0", "at least 1"]),
    "evaluation after the end": (
        [SMOKE, "--config.relearn.evaluate_steps=(0,99)"],
        ["evaluate_steps = (0, 99)", "from 0 to steps = 8"],
    ),
    "no rates": ([SMOKE, "--config.relearn.learning_rates=(0.0,)"], ["learning_rates = (0.0,)", "all positive"]),
    "loss": ([SMOKE, "--config.distill.loss_on=words"], ["loss_on = 'words'", "'all', 'answer' or 'unmarked'"]),
    "empty split": (
        [SMOKE, "--config.data.multiplication_max=1"],
        ["data.multiplication_max=1", "from 2 to 300"],
    ),
    "nothing held out": ([SMOKE, "--config.data.heldout_facts=0.0"], ["data.heldout_facts=0.0", "raise it"]),
    "short rows": ([SMOKE, "--config.data.row_length=8"], ["data.row_length=8", "raise it"]),
    "alpha": ([SMOKE, "--config.undo.alphas=(1.5,)"], ["undo.alphas = (1.5,)", "[0, 1]"]),
    "alpha 1 without noise": (
        [SMOKE, "--config.undo.alphas=(1.0,)", "--config.undo.beta=0.0"],
        ["alpha = 1 with beta = 0", "use beta > 0"],
    ),
    "negative beta": ([SMOKE, "--config.undo.beta=-0.1"], ["beta = -0.1", "must not be negative"]),
    "English without files": (
        [SMOKE, "--config.data.english_share=0.5"],
        ["data.english_share=0.5", "set data.english"],
    ),
    "English from nowhere": (
        [SMOKE, "--config.data.english=('/no/such.txt',)", "--config.data.english_share=0.5"],
        ["data.english='/no/such.txt'", "no such file"],
    ),
    "vocabulary": ([SMOKE, "--config.model.vocab=100"], ["model.vocab = 100", "201", "raise"]),
    "RMU deeper than the model": (
        ["--config=configs/arithmetic.py:smoke,full", "--config.rmu.layer=5"],
        ["layer = 5", "model.layers = 1"],
    ),
}


def call(*arguments: str) -> int:
    """Run the program in this process, from the repository's root, up to where it would begin to compute."""
    with contextlib.chdir(ROOT), pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "execute", lambda *_: pytest.fail("not refused: the run has begun"))
        return main(["distill-jax", *arguments])


def assert_refused(code: int, out: str, err: str, *words: str) -> None:
    assert code == 2, (out, err)
    assert "Traceback" not in err and "Error" not in err, err
    assert err.startswith("distill-jax: ") and 1 <= len(err.splitlines()) <= 3, err
    assert [word for word in words if word not in err] == [], err


def state_of(directory: Path) -> dict[str, bytes | None]:
    """Return every file's contents; the locks, which say nothing, are left out."""
    files = [path for path in sorted(directory.rglob("*")) if path.name not in (".lock", ".gate")]
    return {str(path): path.read_bytes() if path.is_file() else None for path in files}


@pytest.fixture
def workdir(tmp_path) -> Path:
    """A work directory with something finished in it."""
    finished = tmp_path / "run/nodes/reference-0123456789ab"
    finished.mkdir(parents=True)
    (finished / "DONE").write_text("{}")
    write_sealed(tmp_path / "run/experiment.json", {"experiment": "arithmetic-smoke"})
    return tmp_path / "run"


@pytest.mark.unit
@pytest.mark.parametrize(("arguments", "words"), TYPED.values(), ids=TYPED)
def test_wrong_input_is_named_with_its_mend(arguments, words, workdir, capsys, monkeypatch):
    before = state_of(workdir)
    monkeypatch.setattr(sys, "argv", ["distill-jax", "run", *arguments, f"--workdir={workdir}"])
    assert_refused(call(*sys.argv[1:]), *capsys.readouterr(), *words)
    assert state_of(workdir) == before


@pytest.mark.unit
def test_an_unknown_command_is_named(capsys):
    assert_refused(call("rnu", SMOKE), *capsys.readouterr(), "'rnu'", "did you mean 'run'?", "prepare", "report")


@pytest.mark.unit
def test_no_command_shows_the_usage(capsys):
    assert call() == 2
    err = capsys.readouterr().err
    assert all(word in err for word in ("usage:", "run", "prepare", "report", "--workdir"))


@pytest.mark.unit
@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"], ["run", "--help"]], ids=" ".join)
def test_help_is_no_mistake(arguments, capsys):
    assert call(*arguments) == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: distill-jax") and err == ""


@pytest.mark.unit
def test_the_program_listens_to_its_arguments_and_not_to_the_process(monkeypatch, workdir, capsys):
    """`main(argv)` with another sys.argv, as a notebook or a test calls it."""
    monkeypatch.setattr(sys, "argv", ["something", "--else"])
    code = call("run", SMOKE, "--config.relearn.steps=0", f"--workdir={workdir}")
    assert_refused(code, *capsys.readouterr(), "steps = 0")


@pytest.mark.unit
def test_no_workdir(capsys):
    assert_refused(call("run", SMOKE), *capsys.readouterr(), "--workdir=DIR", "missing")


@pytest.mark.unit
@pytest.mark.parametrize("place", ["under a file", "in /proc"])
def test_a_workdir_that_cannot_be_made(place, tmp_path, capsys):
    (tmp_path / "file").touch()
    chosen = {"under a file": tmp_path / "file/run", "in /proc": Path("/proc/run")}[place]
    code = call("run", SMOKE, f"--workdir={chosen}")
    assert_refused(code, *capsys.readouterr(), f"--workdir={chosen}", "cannot be written", "choose another")


@pytest.mark.unit
def test_the_workdir_of_another_experiment(workdir, capsys):
    write_sealed(workdir / "experiment.json", {"experiment": "doublebind"})
    before = state_of(workdir)
    code = call("run", SMOKE, f"--workdir={workdir}")
    assert_refused(code, *capsys.readouterr(), str(workdir), "'doublebind'", "'arithmetic-smoke'", "its own")
    assert state_of(workdir) == before


@pytest.mark.unit
def test_a_directory_with_other_files(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("mine")
    code = call("run", SMOKE, f"--workdir={tmp_path}")
    assert_refused(code, *capsys.readouterr(), str(tmp_path), "thesis.tex", "choose a new directory")
    assert (tmp_path / "thesis.tex").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} <= {"thesis.tex", ".lock", ".gate"}


@pytest.mark.unit
def test_a_workdir_in_use(workdir, capsys):
    before = state_of(workdir)
    with open(workdir / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code = call("run", SMOKE, f"--workdir={workdir}")
    assert_refused(code, *capsys.readouterr(), str(workdir), "in use by another run", "wait")
    assert state_of(workdir) == before


@pytest.mark.unit
def test_a_damaged_marker_is_named(workdir, capsys):
    (workdir / "experiment.json").write_text('{"exper')
    code = call("run", SMOKE, f"--workdir={workdir}")
    assert_refused(code, *capsys.readouterr(), "experiment.json")


@pytest.mark.unit
@pytest.mark.parametrize("contents", [None, "", '{"experiment": '], ids=["missing", "empty", "cut short"])
def test_a_report_of_nothing(workdir, contents, capsys):
    if contents is not None:
        (workdir / "report").mkdir()
        (workdir / "report/summary.json").write_text(contents)
    code = call("report", f"--workdir={workdir}")
    assert_refused(code, *capsys.readouterr(), f"{workdir}", "report/summary.json", "distill-jax run")


@pytest.mark.unit
@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def get_config():\n    return 1 +\n", ["mine.py", "line 2"]),
        ("from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict()\n", ["get_experiment"]),
        ("import no_such_module\n", ["mine.py", "no_such_module"]),
    ],
    ids=["syntax", "no stages", "import"],
)
def test_a_config_file_with_a_mistake(source, words, workdir, tmp_path, capsys, monkeypatch):
    (tmp_path / "mine.py").write_text(source)
    monkeypatch.setattr(sys, "argv", ["distill-jax", "run", f"--config={tmp_path}/mine.py", f"--workdir={workdir}"])
    code = call(*sys.argv[1:])
    err = capsys.readouterr().err
    assert code == 2 and "Traceback" not in err and len(err.splitlines()) <= 3, err
    assert all(word in err for word in words), err


# What a config file says in place of a line of a right one, and what the message must hold.
CHANGED: dict[str, list[str]] = {
    "return None": ["get_config returns an ml_collections.ConfigDict", "NoneType"],
    "return c.to_dict()": ["get_config returns an ml_collections.ConfigDict", "dict"],
    "del c.model": ["the config has no 'model'"],
    "c.model = 3": ["Could not override field 'model'"],
    "del c.model; c.model = 3": ["config.model = 3", "section"],
    "del c.experiment; c.experiment = 7": ["config.experiment = 7", "text"],
    "raise SystemExit(0)": ["SystemExit: 0"],
    "raise KeyError('deep')": ["KeyError", "deep"],
    "c.model.init_std = math.nan": ["model.init_std = nan", "must be finite"],
    "c.model.rope_scaling = (math.inf,)": ["model.rope_scaling[0] = inf", "must be finite"],
    "c.model.layers = 10**9": ["model.layers = 1000000000", "at most 10000"],
    "c.run.cpu_devices = 10**6": ["cpu_devices = 1000000", "at most 1024"],
    "c.data.seed = 10**30": ["data.seed", "64 bits"],
}
ALTERED: dict[str, list[str]] = {
    "return None": ["get_experiment(config) returns an Experiment", "NoneType"],
    "return {'a': Pretrain()}": ["get_experiment(config) returns an Experiment", "dict"],
    "stages = [1]": ["stages is [1]", "get_experiment(config) returns an Experiment"],
    "stages = {'a': 1}": ["stages.a is 1"],
    "stages = {'a': Pretrain}": ["stages.a is <class"],
    "stages = {7: Pretrain()}": ["stages = 7", "names a directory"],
    "stages = {'../../escape': Pretrain()}": ["stages = '../../escape'", "letters, digits"],
    "raise OSError('no such thing')": ["OSError: no such thing"],
    "raise SystemExit(3)": ["SystemExit: 3"],
    "stages = {'a': Pretrain(learning_rate=math.inf)}": ["stages.a.learning_rate = inf", "must be finite"],
    "stages = {'a': Pretrain(steps=10**30)}": ["stages.a.steps", "64 bits"],
    "stages = {'a': Relearn(start='a', seeds=10**9)}": ["seeds = 1000000000", "from 1 to 1000"],
}


@pytest.mark.unit
@pytest.mark.parametrize("line", [*CHANGED, *(f"{line} " for line in ALTERED)])
def test_whatever_a_config_file_does_wrong_is_named(line, workdir, tmp_path, capsys):
    text = hostile_cases.CONFIG.replace("import dataclasses", "import dataclasses, math")
    holes = ("CHANGED", "ALTERED") if line in CHANGED else ("ALTERED", "CHANGED")
    (tmp_path / "mine.py").write_text(text.replace(holes[0], line).replace(holes[1], "pass"))
    before = state_of(workdir)
    code = call("run", f"--config={tmp_path}/mine.py", f"--workdir={workdir}")
    err = capsys.readouterr().err
    assert code == 2 and "Traceback" not in err and len(err.splitlines()) == 1, err
    words = CHANGED[line] if line in CHANGED else ALTERED[line.rstrip()]
    assert [word for word in words if word not in err] == [], err
    assert state_of(workdir) == before


@pytest.mark.unit
@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("return None", "returns the base config, a path, and a list of points"),
        ("return base, 7", "its points are int"),
        ("return 7, [{}]", "its base config is 7"),
        ("return base, [{'seed': 1}, 3]", "point 1 is 3"),
        ("return base, [{7: 1}]", "point 0 is {7: 1}"),
        ("return base, (1 / 0 for _ in range(3))", "ZeroDivisionError"),
        ("return base, [{'stages': 'reference'}]", "asks for stages 'reference'; give a tuple"),
        ("return base, [{'seed': 1}, {'data.english_share': 0.5}]", "data.english_share=0.5: needs English text"),
    ],
)
def test_whatever_a_sweep_file_does_wrong_is_named(line, word, tmp_path, capsys):
    base = f"{ROOT}/configs/arithmetic.py:smoke"
    (tmp_path / "mine.py").write_text(f"def get_sweep(arg):\n    base = {base!r}\n    {line}\n")
    code = call("sweep", f"--sweep={tmp_path}/mine.py", f"--workdir={tmp_path}/run")
    err = capsys.readouterr().err
    assert code == 2 and word in err and "Traceback" not in err and len(err.splitlines()) == 1, err
    assert not (tmp_path / "run").exists()


@pytest.mark.unit
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", SMOKE, "--workdir=hdfs://bucket/run"], ["--workdir=hdfs://bucket/run", "an address", "mount"]),
        (["report", "--workdir=gs:/bucket/run"], ["--workdir=gs:/bucket/run", "lost a slash", "gs://bucket/run"]),
        (["report", "--workdir=./gs://bucket/run"], ["lost a slash", "gs://bucket/run"]),
        (["report", "--workdir=./s3:run"], ["--workdir=./s3:run", "s3://run"]),
        (["report", "--workdir=~/run"], ["--workdir=~/run", "home directory", "$HOME"]),
        (["report", "--workdir=./~nobody"], ["--workdir=./~nobody", "home directory", "$HOME"]),
        (["run", SMOKE, "--workdir=\udcff"], ["--workdir='\\udcff'", "no UTF-8"]),
        (["run", "--config=pyproject.toml", "--workdir=x"], ["pyproject.toml is no Python file"]),
        (["sweep", "--sweep=pyproject.toml", "--workdir=x"], ["pyproject.toml is no Python file"]),
        (["sweep", "--sweep=tests/faults/tiny_sweep.py", "--workers=1000000", "--workdir=x"], ["workers", "1000000"]),
        (["run", SMOKE, "--config.maxent.learning_rate=inf", "--workdir=x"], ["learning_rate = inf", "must be finite"]),
    ],
    ids=lambda value: " ".join(value)[:40].encode("ascii", "replace").decode(),
)
def test_what_is_no_path_or_no_number_is_refused(arguments, words, capsys, tmp_path, monkeypatch):
    assert_refused(call(*arguments), *capsys.readouterr(), *words)
    assert not (ROOT / "gs:").exists() and not (ROOT / "s3:").exists()


@pytest.mark.end_to_end
@pytest.mark.parametrize("name", ["unknown key"])
def test_the_real_program_refuses_as_well(name, workdir):
    """The very process that a user starts: nothing but the message, not even a warning of a library."""
    arguments, words = TYPED[name]
    done = subprocess.run(
        [sys.executable, "-m", "distill_jax.main", "run", *arguments, f"--workdir={workdir}"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert_refused(done.returncode, done.stdout, done.stderr, *words)
    assert done.stdout == ""


# Damage to what a run has left behind


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    return shared(tmp_path_factory, "runs")


@pytest.fixture(scope="session")
def finished(base) -> Path:
    return finished_run(base)[0]


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def done_files(workdir: Path) -> set[str]:
    return {path.parent.name for path in workdir.glob("nodes/*/DONE")}


@pytest.mark.thorough
@pytest.mark.end_to_end
@pytest.mark.parametrize("damage", [cut, flip, Path.unlink], ids=["cut short", "one bit", "gone"])
def test_damaged_weights_that_are_still_needed(damage, copy, runs_here):
    """The message names the node to remove; done as it says, the run comes to the same end."""
    forget(copy, "relearn-oracle")
    before = done_files(copy)
    damage(largest(node(copy, "oracle") / "checkpoints/final"))
    done = runs_here(copy)
    assert_refused(done.returncode, done.stdout, done.stderr, f"remove {node(copy, 'oracle')}", "run again")
    assert done_files(copy) == before


@pytest.mark.thorough
@pytest.mark.end_to_end
def test_the_mend_of_damaged_weights_mends(copy, finished, runs_here):
    cut(largest(node(copy, "oracle") / "checkpoints/final"))
    forget(copy, "relearn-oracle", "oracle")
    done = runs_here(copy)
    assert done.returncode == 0, done.stderr
    assert_same_run(finished, copy)


@pytest.mark.thorough
@pytest.mark.end_to_end
def test_damaged_weights_that_nobody_needs_do_not_matter(copy, runs_here):
    cut(largest(node(copy, "oracle") / "checkpoints/final"))
    assert runs_here(copy).returncode == 0


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("forget_shown.array_record", cut),
        ("forget_shown.array_record", flip),
        ("forget_shown.array_record", Path.unlink),
        ("evaluation.jsonl", cut),
        ("evaluation.jsonl", flip),
        ("manifest.json", cut),
        ("manifest.json", Path.unlink),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_damaged_data(file, damage, copy, capsys):
    forget(copy, "relearn-oracle")
    before, data = done_files(copy), node(copy, "data")
    damage(data / "rows" / file)
    with contextlib.chdir(ROOT):
        code = main(["distill-jax", "run", SMOKE, *SETTINGS, f"--workdir={copy}"])
    assert_refused(code, *capsys.readouterr(), file, f"remove {data}")
    assert done_files(copy) == before


@pytest.mark.thorough
@pytest.mark.end_to_end
@pytest.mark.parametrize("file", ["result.json", "ledger.json", "metrics.jsonl"])
def test_a_damaged_record_of_a_finished_node(file, copy, runs_here):
    """The report needs it: better no report than one with a hole that nobody sees."""
    cut(node(copy, "relearn-oracle") / file)
    done = runs_here(copy)
    assert_refused(done.returncode, done.stdout, done.stderr, str(node(copy, "relearn-oracle")), "remove")


@pytest.fixture
def runs_here(base) -> Callable[..., subprocess.CompletedProcess[str]]:
    return Runs(base)


# A full disk


@pytest.mark.end_to_end
def test_a_disk_full_from_the_start(tmp_path, capsys):
    with small_disk(tmp_path / "disk", "64k") as disk:
        workdir = disk / "run"
        workdir.mkdir()
        fill(disk, 0)
        code = call("run", SMOKE, f"--workdir={workdir}")
        assert_refused(code, *capsys.readouterr(), "No space left on device", str(workdir), "same command")


@pytest.mark.thorough
@pytest.mark.end_to_end
@pytest.mark.parametrize("leave", [30, 100], ids="{} KiB".format)
def test_a_disk_that_fills_up_in_the_middle(leave, finished, runs_here, tmp_path):
    """In a log, in a checkpoint, in a result: one message each time, and room is all it takes to go on."""
    with small_disk(tmp_path / "disk", "24m") as disk:
        workdir = shutil.copytree(finished, disk / "run")
        gone = ("student", "undo-0.2", "undo-0.9", "relearn-student", "relearn-undo-0.2", "relearn-undo-0.9")
        forget(workdir, *gone)
        before = done_files(workdir)
        fill(disk, leave)
        done = runs_here(workdir)
        assert_refused(done.returncode, done.stdout, done.stderr, "No space left on device", "same command")
        assert before <= done_files(workdir)
        if leave == 100:  # one of them goes on
            (disk / "filler").unlink()
            done = runs_here(workdir)
            assert done.returncode == 0 and len(done.stderr.splitlines()) <= 1, done.stderr
            assert_same_run(finished, workdir)


@pytest.mark.thorough
@pytest.mark.end_to_end
def test_a_limit_on_the_size_of_files(finished, base, copy):
    """A save in the background and a node's last one end in a line each, and without the limit it goes on."""
    forget(copy, "oracle", "relearn-oracle", "relearn-undo-0.9")
    limited = ("-c", "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (16384,) * 2); "
               "from distill_jax.main import main; sys.exit(main(sys.argv))")  # fmt: skip
    done = Runs(base)(copy, program=limited)
    last = "oracle" if (node(copy, "oracle") / "config.json").exists() else "relearn-undo-0.9"
    assert_refused(done.returncode, done.stdout, done.stderr, "File too large", f"{node(copy, last)}/checkpoints")
    done = Runs(base)(copy)
    assert done.returncode == 0, done.stderr
    assert_same_run(finished, copy)


@pytest.mark.thorough
@pytest.mark.end_to_end
def test_a_disk_that_fills_up_while_data_is_prepared(base, tmp_path):
    with small_disk(tmp_path / "disk", "200k") as disk:
        done = Runs(base)(disk / "run", command="prepare")
        assert_refused(done.returncode, done.stdout, done.stderr, "No space left", "same command")
        assert done_files(disk / "run") == set()
