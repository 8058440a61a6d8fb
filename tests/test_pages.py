"""What the pages say of the program: it reads each command line, and each link and each name leads somewhere."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from distill_jax.commands import COMMANDS, attack, command_line, config_line, module_name
from distill_jax.experiment.named_config import open_config
from distill_jax.experiment.sweep_file import open_sweep

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("docs/*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PYTHON = [path for folder in ("distill_jax", "configs", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What a page may leave out, as in `run …`; the last of a flag counts, so what it gives comes after.
ASSUMED = {"sweep": ["--sweep=undo_arithmetic"], "run": ["--config=arithmetic:smoke"], "plan": ["--config=arithmetic"]}
WORKDIR = ("run", "audit", "sweep", "report", "status")


def command_lines(text: str) -> Iterator[list[str]]:
    """Yield the words after `distill-jax` in a page's shell blocks, with variables that the block sets filled in."""
    for block in BLOCK.findall(text):
        variables: dict[str, str] = {}
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(re.sub(r"\$(\w+)", lambda name: variables.get(name[1], name[0]), line), comments=True)  # noqa: B023
            variables |= dict(word.split("=", 1) for word in words if re.match(r"[A-Z]+=", word))
            if "distill-jax" in words:
                call = words[words.index("distill-jax") + 1 :]
                yield call[: call.index("&&")] if "&&" in call else call


def read(command: str, given: Sequence[str]) -> None:
    """Read a command line as the program does, and compute nothing."""
    flags = importlib.import_module(module_name(command)).Flags
    given = [word for word in given if "…" not in word and word != "--watch"]
    arguments = [*ASSUMED.get(command, []), *(["--workdir=w"] if command in WORKDIR else []), *given]
    if command == "sweep":
        source, rest = config_line.take(arguments, "sweep")
        config_line.read_over(command, flags, rest, open_config(open_sweep(source).base))
    elif command in ("run", "audit", "prepare", "data", "plan"):
        config_line.read(command, flags, arguments)
    elif command in ("protect", "attack"):
        config_line.read_over(command, flags, attack._joined(arguments), open_config(command))
    else:
        command_line.read(command, flags, arguments, words=command == "bench")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_program_reads_every_command_line_of_a_page(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for command, *arguments in command_lines(page.read_text()):
        assert command in COMMANDS, command
        read(command, arguments)


def test_the_pages_have_command_lines():
    assert sum(1 for page in PAGES for _ in command_lines(page.read_text())) > 60


def anchors(page: Path) -> set[str]:
    """Return the anchors that a Markdown page's headings have, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text()):
        to = (page.parent / target).resolve() if target else page
        assert to.exists(), target
        assert not anchor or anchor in anchors(to), f"{target}#{anchor}"


def leads_nowhere(dotted: str, rooms: Sequence[Path]) -> bool:
    """Whether `room.module.name` or `room.folder.module` begins in a folder of the package and ends nowhere."""
    room, module, name, *_ = dotted.split(".")
    homes = [folder for folder in rooms if folder.name == room]
    files = [path for home in homes for path in (home / f"{module}.py", home / module / "__init__.py")]
    named = any(re.search(rf"\b{name}\b", file.read_text()) for file in files if file.exists())
    return bool(homes) and not named and not any((folder / module / f"{name}.py").exists() for folder in homes)


def test_every_module_that_a_text_names_exists():
    rooms = [path for path in (ROOT / "distill_jax").rglob("*") if path.is_dir()]
    named = [
        (path.relative_to(ROOT), dotted)
        for path in [*PAGES, *PYTHON]
        for dotted in re.findall(r"`(?:distill_jax\.)?(\w+(?:\.\w+){2,})`", path.read_text())
    ]
    assert len(named) > 20
    assert not [(path, dotted) for path, dotted in named if leads_nowhere(dotted, rooms)]
