"""Hostile command lines, configs, files and environments, drawn from a grammar."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from distill_jax.shipped import TINY

ROOT = Path(__file__).parents[2]
MODEL = TINY / "choices" / "model"
SMOKE = f"--config={ROOT}/configs/arithmetic.py:smoke"

CONFIG = """
import dataclasses
from ml_collections import ConfigDict
from distill_jax.data.arithmetic.equations import ArithmeticConfig
from distill_jax.experiment.experiment import Experiment
from distill_jax.models.presets import preset
from distill_jax.stages import Distill, Perturb, Pretrain, Relearn
from distill_jax.stages.context import RunSettings

def get_config(arg=""):
    c = ConfigDict({"experiment": "hostile", "description": "", "seed": 0})
    c.model = ConfigDict(dataclasses.asdict(preset("cpu")))
    c.data = ConfigDict(dataclasses.asdict(ArithmeticConfig()))
    c.run = ConfigDict(dataclasses.asdict(RunSettings()))
    CHANGED
    return c

def get_experiment(c):
    stages = {"reference": Pretrain(), "relearn": Relearn(start="reference")}
    ALTERED
    return Experiment(stages=stages)
"""
# What a value of a setting, of a flag, or of a number in a file may be.
VALUES = (
    "nan", "inf", "-inf", "1e999", "-1", "0", "1.5", "1000000000000", "9" * 400, "True", "None", "", "()", "(",
    "('a',)", "(nan,)", "((),)", "[1,", "{}", "\U0001f642", "\u2028", "é", "a b", "../..", "x" * 5000,
    "gs://bucket/x", "0x", "--", "__import__('os')", "lambda: 0", "\udcff",
)  # fmt: skip
CHANGED = (
    "return None", "return {}", "return c.to_dict()", "del c.model", "del c.run", "c.model = 3", "c.data = 'x'",
    "c.experiment = 7", "raise KeyError('x')", "raise SystemExit(0)", "raise RecursionError", "1 / 0", "return [c]",
    "c.model.hidden = 10**9", "c.model.layers = 10**9", "c.model.init_std = float('nan')", "c.model.vocab = 10**15",
    "c.data.english = ('\\0',)", "c.run.cpu_devices = 10**6", "c.data.equations = 10**12",
    "c.data.row_length = 10**9", "c.data.seed = 10**30", "c.model.rope_scaling = (float('inf'),)",
    "c.data = ConfigDict()", "c.run.profile = ('a', 'b')",
)  # fmt: skip
ALTERED = (
    "return None", "return []", "stages = {'a': 1}", "stages = {1: Pretrain()}", "stages = None", "raise KeyError('x')",
    "raise OSError('x')", "raise SystemExit(3)", "raise AssertionError", "import no_such_module",
    "stages['../../escape'] = Pretrain()", "stages[OUTSIDE + '/absolute'] = Pretrain()", "stages['a/b'] = Pretrain()",
    "stages['..'] = Pretrain()", "stages['x' * 300] = Pretrain()", "stages[''] = Pretrain()",
    "stages['a\\0b'] = Pretrain()", "stages['é'] = Pretrain()", "stages['a'] = Pretrain",
    "stages['data'] = Pretrain()", "stages['a'] = Pretrain(learning_rate=float('inf'))",
    "stages['a'] = Pretrain(batch=10**12)", "stages['a'] = Pretrain(steps=10**30)",
    "stages['a'] = Relearn(start='b')", "stages['a'] = Relearn(start=['reference'])",
    "stages['a'] = Distill(teacher='a')", "stages['a'] = Pretrain(seed=None)",
    "stages['a'] = Perturb(start='reference', beta=float('nan'))",
    "stages['a'] = Relearn(start='reference', seeds=10**9)",
    "stages['a'] = Relearn(start='reference', learning_rates=(float('nan'),))",
    "stages['a'] = Relearn(start='relearn')", "stages['a'] = Pretrain(data='nothing')",
    "stages['a'] = Pretrain(batch=2**31)", "stages['\\n'] = Pretrain()",
)  # fmt: skip
SWEPT = (
    "return None", "return 7", "return base", "return base, None", "return base, 7", "return base, [1]",
    "return base, ['a']", "return base, [None]", "return base, [{1: 2}]", "return base, []", "return None, [{}]",
    "return 'nowhere.py', [{}]", "return base, [{'seed': 'x'}]", "return base, [{'seed': 10**30}]",
    "return base, [{'model': 3}]", "raise KeyError", "return base, [{'no.such': 1}]",
    "return base, [{'stages': 'reference'}]", "return base, [{'stages': ('nothing',)}]",
    "return base, (1 / 0 for _ in range(3))", "raise SystemExit(0)",
    "return base, [{'undo.alphas': (float('nan'),)}]", "return base, [{'': 1}]",
    "return base, [{'seed': 1}, {'seed': object()}]", "return base, [{'relearn.batch': 10**12}]",
)  # fmt: skip
ENVIRONMENT = (
    ("JAX_ENABLE_X64", "1"), ("JAX_ENABLE_X64", "perhaps"), ("JAX_DEFAULT_PRNG_IMPL", "rbg"),
    ("JAX_RANDOM_SEED_OFFSET", "x"), ("JAX_DEFAULT_PRNG_IMPL", "dice"), ("JAX_THREEFRY_PARTITIONABLE", ""),
    ("JAX_DEBUG_NANS", "perhaps"), ("JAX_PLATFORMS", "cuda"), ("JAX_PLATFORMS", "abacus"),
    ("JAX_NUMPY_DTYPE_PROMOTION", "strict"), ("HOME", "/nowhere"), ("TMPDIR", "/nowhere"),
    ("JAX_LOG_COMPILES", "maybe"), ("JAX_COMPILATION_CACHE_DIR", "/proc/nowhere"), ("LANG", "xx"),
    ("JAX_DEFAULT_MATMUL_PRECISION", "rough"), ("PYTHONPATH", "\udcff"), ("JAX_TRACEBACK_FILTERING", "x"),
)  # fmt: skip


@dataclasses.dataclass
class Case:
    """A command line, the files it names (made by `prepare` in its own directory), and its surroundings."""

    arguments: list[str]
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    prepare: list[Callable[[Path], None]] = dataclasses.field(default_factory=list)
    no_stdin: bool = False
    no_cwd: bool = False


def _write(name: str, text: str | bytes) -> Callable[[Path], None]:
    def make(here: Path) -> None:
        data = text if isinstance(text, bytes) else text.replace("OUTSIDE", repr(str(here))).encode("utf-8", "replace")
        (here / name).write_bytes(data)

    return make


def _model(rng: random.Random) -> Callable[[Path], None]:
    """Copy a real model and spoil one of its files: cut, a byte turned over, gone, or a value of its config."""
    kind, place = rng.choice(["cut", "flip", "gone", "value", "whole"]), rng.random()
    file = rng.choice(sorted(path.name for path in MODEL.iterdir()))
    key, value = rng.choice(sorted(json.loads((MODEL / "config.json").read_text()))), rng.choice(VALUES)
    number = rng.choice([value, None, [], {}, 1.5, -1, 10**9, 10**18, 0, True])

    def make(here: Path) -> None:
        copy = Path(shutil.copytree(MODEL, here / "model"))
        data = bytearray((copy / file).read_bytes())
        if kind == "cut":
            (copy / file).write_bytes(data[: int(place * len(data))])
        elif kind == "flip":
            data[int(place * len(data))] ^= 1 << int(8 * place)
            (copy / file).write_bytes(data)
        elif kind == "gone":
            (copy / file).unlink()
        elif kind == "value":
            config = json.loads((copy / "config.json").read_text())
            (copy / "config.json").write_text(json.dumps({**config, key: number}))

    return make


ROWS = (
    b"", b"\n\n", b"{}", b"[]", b"null\n", b'{"text": 3}', b'{"text": ""}', b'{"tokens": []}', b'{"tokens": [-1]}',
    b"\x00\x00", b'{"tokens": [1e9]}', b'{"tokens": [true]}', b'{"tokens": "x"}', b'{"text": "a"',
    b'{"tokens": [99999999999999999999]}', b'{"tokens": [0.5]}', b'{"text": null}', b'{"text": {"text": "a"}}',
    b'{"question": "q", "choices": [], "answer": 9}',
)  # fmt: skip


def _paths(rng: random.Random) -> str:
    """Draw a path; mostly a good one, as what is refused at once hides what comes after."""
    if rng.random() < 0.6:
        return "work"
    return rng.choice(
        ("work", "../../up", "gs://bucket/run", "s3://b", "/proc/run", "/dev/null", "file/below", "file", "x" * 300, "",
         "full", "a b", "-", "~", "\udcff", "work/" * 30, "/dev/full")
    )  # fmt: skip


def settings() -> list[str]:
    """Return the settings that a command line may change."""
    from distill_jax.experiment.config_file import load_module

    config = load_module(ROOT / "configs" / "arithmetic.py").get_config("smoke")
    sections = {key: list(value) for key, value in config.items() if hasattr(value, "keys")}
    return [*config, *(f"{section}.{key}" for section, keys in sections.items() for key in keys)]


def _computing(rng: random.Random, keys: Sequence[str]) -> Case:
    command = rng.choice(["run", "run", "run", "audit", "prepare", "data", "plan", "sweep", "sweep"])
    case = Case([command])
    source = rng.choice(["smoke", "changed", "altered", "text"])
    if command == "sweep":
        body = f"    base = {str(ROOT / 'configs/arithmetic.py:smoke')!r}\n    {rng.choice(SWEPT)}\n"
        case.prepare.append(_write("mine.py", f"def get_sweep(arg=''):\n{body}"))
        case.arguments += [
            "--sweep=mine.py",
            *rng.choice([[], ["--count"], ["--dry-run"], ["--index=7"], ["--index=x"]]),
        ]
    elif source == "smoke":
        case.arguments.append(SMOKE)
    elif source == "text":
        case.prepare.append(_write(name := rng.choice(["mine.py", "x.yaml", "m"]), rng.choice(ROWS) + CONFIG.encode()))
        case.arguments.append(f"--config={name}")
    else:
        holes = {"CHANGED": "pass", "ALTERED": "pass"} | {
            source.upper(): rng.choice(CHANGED if source == "changed" else ALTERED)
        }
        text = CONFIG.replace("CHANGED", holes["CHANGED"]).replace("ALTERED", holes["ALTERED"])
        case.prepare.append(_write("mine.py", text))
        case.arguments.append("--config=mine.py")
    if command == "sweep" or source == "smoke":
        for _ in range(rng.choice([0, 1, 1, 2])):
            case.arguments.append(f"--config.{rng.choice(keys)}={rng.choice(VALUES)}")
    if command == "plan":
        case.arguments.append(f"--slice={rng.choice(['v5e-16', 'v5e-16', 'auto', 'v5e-7', rng.choice(VALUES)])}")
        case.arguments += rng.choice([[], ["--stages=nothing"], ["--prices=file"], ["--json=/proc/x"]])
        case.arguments.append("--stages=never")  # compiling is not what is tried here
    case.arguments.append(f"--workdir={_paths(rng)}")
    return case


def _interop(rng: random.Random) -> Case:
    command = rng.choice(["import", "export", "score", "generate"])
    flags = {
        "import": {"from": "model", "workdir": "work"},
        "export": {"model": "model", "to": "work/out"},
        "score": {"model": "model", "input": "rows.jsonl", "output": "work/out.jsonl"},
        "generate": {"model": "model", "input": "rows.jsonl", "output": "work/out.jsonl", "new": "2"},
    }[command]
    optional = (
        "dtype",
        "batch",
        "shard_gb",
        "temperature",
        "seed",
        "tokenizer",
        "adapter",
        "shots",
        "items",
        "examples",
    )
    case = Case([command], prepare=[_model(rng), _write("rows.jsonl", rng.choice(ROWS))])
    if rng.random() < 0.5:
        flags[rng.choice([*flags, *optional])] = rng.choice([*VALUES, _paths(rng)])
    case.arguments += [f"--{flag}={value}" for flag, value in flags.items() if rng.random() < 0.95]
    return case


def _other(rng: random.Random) -> Case:
    command = rng.choice(["report", "bench", "help", "", "rnu", "--help", "report", *VALUES])
    flags = [f"--workdir={_paths(rng)}", "--tiny", f"--json={_paths(rng)}", f"--batch={rng.choice(VALUES)}", "nothing"]
    case = Case([command, *rng.sample(flags, rng.randint(0, 3))])
    if command == "bench":
        case.arguments.append("no_such_benchmark")  # measuring is not what is tried here
    if command == "report":
        case.arguments = ["report", "--workdir=work"]
        text = rng.choice(
            ['{"exper', "", "[]", "null", "{}", '{"models": 3}', '{"page": "sweep"}', '{"page": [1]}', "7"]
        )
        folder = lambda here: (here / "work" / "report").mkdir(parents=True)  # noqa: E731
        case.prepare += [folder, _write(f"work/report/{rng.choice(['summary.json', 'sweep.json'])}", text)]
    return case


def make(rng: random.Random, keys: Sequence[str]) -> Case:
    """Draw a case."""
    case = rng.choices([lambda: _computing(rng, keys), lambda: _interop(rng), lambda: _other(rng)], [6, 3, 1])[0]()
    if rng.random() < 0.25:
        case.environment = dict(rng.sample(ENVIRONMENT, rng.randint(1, 2)))
    if rng.random() < 0.1:
        case.arguments.insert(rng.randint(1, len(case.arguments)), rng.choice(["--", "-x", "--=", "-", *VALUES]))
    case.no_stdin, case.no_cwd = rng.random() < 0.1, rng.random() < 0.03
    return case
