"""`distill-jax protect`: make a model forget, attack what comes out, and say on one card what came back."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator, Sequence

from distill_jax import api, backend
from distill_jax.commands import command_line, config_line, plan
from distill_jax.commands.cluster import ClusterFlags, computed
from distill_jax.commands.command_line import flag
from distill_jax.config import ConfigError, build, check, nearest
from distill_jax.experiment.named_config import NamedConfig
from distill_jax.io.storage import location

FILES = "sources, comma-separated: text, .jsonl, .parquet, patterns; ?field=NAME says where the text is"

CHAT = "put questions as the model's own chat template does, where they are trained on, shown and measured"


@dataclasses.dataclass(frozen=True)
class Flags(ClusterFlags):
    """Flags of protect."""

    model: str = flag("", "DIR in the Hugging Face layout with its tokenizer, or FILE.gguf", required=True, path=True)
    forget: str = flag("", f"FILES to forget: {FILES}", required=True)
    retain: str = flag("", f"FILES to retain: {FILES}", required=True)
    workdir: str = flag("", "DIR: where everything is written", path=True)
    method: str = flag("maxent", "how it is suppressed: maxent, graddiff, rmu, npo, undial, … (docs/protecting.md)")
    chat: bool = flag(False, CHAT)
    own_text: int = flag(0, "N: documents that the model itself writes first, to be retained beside FILES")
    dry_run: bool = flag(False, "say which stages there are, what they take, and what to expect; run nothing")
    slice: str = flag("", "plan it for a TPU slice, such as v5e-16, or auto; run nothing")
    print_config: bool = flag(False, "print the config file that says the same, to edit, run and sweep")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(bool(self.workdir or self.print_config or self.slice), config_line.WORKDIR)
        check(self.own_text >= 0, f"--own_text={self.own_text}: must not be negative; 0 writes none")
        check(bool(self.workdir or not self.own_text), f"--own_text={self.own_text}: name the --workdir to write it to")


def usage(arguments: Sequence[str]) -> str:
    """Return the help."""
    synopsis = "--model=DIR --forget=FILES --retain=FILES --workdir=DIR [--config.key=value …]"
    more = "`distill-jax run --config=protect --help` shows every setting that --config.key=value changes."
    return command_line.usage("protect", Flags, synopsis, more)


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    bare = [argument for argument in arguments if not argument.startswith("--config.")]
    flags = command_line.read("protect", Flags, bare).flags
    with as_typed():
        return _run(flags, arguments)


@contextlib.contextmanager
def as_typed() -> Iterator[None]:
    """Have errors name --forget and --retain, which were typed, and not the settings that they fill."""
    try:
        yield
    except ConfigError as error:
        typed = re.sub(r"(--config\.)?\bdata\.(forget|retain)(_items)?\b", r"--\2", str(error))
        raise ConfigError(typed) from error


def _run(flags: Flags, arguments: Sequence[str]) -> int:
    named, decisions = _named(flags, arguments)
    config_line.read_over("protect", Flags, arguments, named)
    from distill_jax.experiment import protection

    if flags.print_config:
        print(protection.config_text(named, decisions), end="")
        return 0
    print("\n".join(decisions))
    if flags.slice:
        return _plan(flags, named)
    run = api.open_run(named, flags.workdir)
    protection.check_same_files(run.nodes, flags.workdir)
    if counts := run.experiment.data.what_is_read():
        print(counts)
    page = computed(run, flags, flags.dry_run)
    if page:
        exported = run.nodes["export"].directory / "model"
        print(f"protected model: {exported}\nreport: {page}\ncard: {page.with_name('card.md')}")
    return 0


def _named(flags: Flags, arguments: Sequence[str]) -> tuple[NamedConfig, list[str]]:
    """Return the config with what the model decides, and what that is in words."""
    if flags.slice:
        os.environ.update(plan.PLANNING)
    room = memory_of_devices(arguments, flags.slice)
    from distill_jax.experiment import protection
    from distill_jax.stages.methods import METHODS

    known = f"{nearest(flags.method, METHODS)}; choose {', '.join(METHODS)}"
    check(flags.method in METHODS, f"--method={flags.method}: no such method{known}")
    subject = protection.open_subject(flags.model)
    files, written = protection.Files(flags.forget, flags.retain, flags.chat), []
    if flags.own_text and (flags.dry_run or flags.slice):
        written = [f"own text: {flags.own_text:,} documents would be written first; what follows is without them"]
    elif flags.own_text:
        files, what = protection.with_own_text(subject, files, flags.own_text, location(flags.workdir))
        written = [what]
    named, decisions = protection.protect_config(subject, files, flags.method, room)
    return named, decisions + written


def memory_of_devices(arguments: Sequence[str], slice_name: str = "") -> float:
    """Start the devices, and return the bytes that all of them have; of a slice that is named, those of its chips."""
    from distill_jax.stages.context import RunSettings

    devices, key = config_line.take(arguments, "config.run.cpu_devices")[0], "cpu_devices"
    is_count = devices is None or re.fullmatch(r"\d{1,9}", devices)
    check(bool(is_count), f"--config.run.{key}={devices}: must be a whole number, at least 1")
    run = build(RunSettings, {key: int(devices)} if devices else {}, "--config.run")
    backend.set_up({key: run.cpu_devices})
    backend.find_devices()
    import jax

    from distill_jax.perf import memory, slices

    if slice_name and slice_name != "auto":
        where = slices.find(slice_name)
        return float(where.chips * where.chip.hbm)
    return float(memory.installed(jax.local_devices()[0]) * jax.device_count())


def _plan(flags: Flags, named: NamedConfig) -> int:
    """Plan it for a slice, as `distill-jax plan` does."""
    from distill_jax.experiment.config_file import load_experiment
    from distill_jax.perf.prices import Prices

    named.config.run.fsdp = -1
    plan.print_plan(plan.Flags(slice=flags.slice), load_experiment(named.module, named.config), Prices.load(None))
    return 0
