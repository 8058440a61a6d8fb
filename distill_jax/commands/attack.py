"""`distill-jax attack`: attack models that somebody unlearned, alike, and say what came back."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from distill_jax import api
from distill_jax.commands import command_line, config_line
from distill_jax.commands.cluster import ClusterFlags, computed
from distill_jax.commands.command_line import flag
from distill_jax.commands.protect import CHAT, FILES, as_typed, memory_of_devices


@dataclasses.dataclass(frozen=True)
class Flags(ClusterFlags):
    """Flags of attack."""

    model: tuple[str, ...] = flag(
        (), "DIR or FILE.gguf: a model to attack; give --model again for each", required=True, path=True
    )
    baseline: str = flag("", "DIR or FILE.gguf: what they were before, which knows what they forgot", path=True)
    forget: str = flag("", f"FILES that they forgot: {FILES}", required=True)
    retain: str = flag("", f"FILES that they retained: {FILES}", required=True)
    workdir: str = flag("", "DIR: where everything is written", required=config_line.WORKDIR, path=True)
    chat: bool = flag(False, CHAT)
    dry_run: bool = flag(False, "say which stages there are and what they take; run nothing")


def usage(arguments: Sequence[str]) -> str:
    """Return the help."""
    synopsis = "--model=DIR [--model=DIR2 …] [--baseline=DIR] --forget=FILES --retain=FILES --workdir=DIR"
    more = "`distill-jax run --config=attack --help` shows every setting that --config.key=value changes."
    return command_line.usage("attack", Flags, synopsis, more)


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    arguments = _joined(arguments)
    bare = [argument for argument in arguments if not argument.startswith("--config.")]
    flags = command_line.read("attack", Flags, bare).flags
    with as_typed():
        return _run(flags, arguments)


def _run(flags: Flags, arguments: Sequence[str]) -> int:
    room = memory_of_devices(arguments)
    from distill_jax.experiment import protection

    subjects = [protection.open_subject(path) for path in flags.model]
    files = protection.Files(flags.forget, flags.retain, flags.chat)
    named, decisions = protection.attack_config(subjects, flags.baseline, files, room)
    config_line.read_over("attack", Flags, arguments, named)
    print("\n".join(decisions))
    run = api.open_run(named, flags.workdir)
    protection.check_same_files(run.nodes, flags.workdir)
    if counts := run.experiment.data.what_is_read():
        print(counts)
    page = computed(run, flags, flags.dry_run)
    if page:
        from distill_jax.reports.card import attack_lines

        print("\n".join(attack_lines(run.summary())))
        print(f"report: {page}\ncard: {page.with_name('card.md')}")
    return 0


def _joined(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with every --model=DIR in one, for the last one would count alone."""
    models, rest, left = [], [], list(arguments)
    while left:
        argument = left.pop(0)
        name, equals, value = argument.partition("=")
        if name in ("--model", "-model") and (equals or left):
            models.append(value if equals else left.pop(0))
        else:
            rest.append(argument)
    return [*rest, *([f"--model={','.join(models)}"] if models else [])]
