"""From a page's view to one self-contained HTML file: templates, inlined style and scripts, figures as JSON.

The template engine escapes every value; what a template asks for and a view lacks is an error. A page needs no network:
its style, its scripts and plotly.js, compressed, are inside it.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import gzip
import json
import math
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from distill_jax.evals.scale import MISSING, percent
from distill_jax.io.files import write_atomic
from distill_jax.io.sealed import seal
from distill_jax.io.storage import make_directory
from distill_jax.reports import formats, goodput_summary

JSON_FORMAT = {"allow_nan": False, "ensure_ascii": False, "separators": (",", ":")}


@dataclasses.dataclass(frozen=True)
class Page:
    """What every page's base template prints.

    Attributes:
      title: of the browser's window.
      drawings: what the scripts draw, as JSON values.
      styles, scripts: names of files in `static/`, after those that all pages share.
    """

    title: str
    drawings: Mapping[str, object]
    styles: tuple[str, ...] = ()
    scripts: tuple[str, ...] = ("run.js",)


def clean(tree: Any) -> Any:
    """Return `tree` as plain JSON values: arrays become lists, and NaN and infinities become None."""
    if hasattr(tree, "tolist"):
        tree = tree.tolist()
    if isinstance(tree, Mapping):
        return {str(key): clean(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [clean(value) for value in tree]
    if isinstance(tree, float) and not math.isfinite(tree):
        return None
    return tree


def render_template(name: str, page: Page, **view: object) -> str:
    """Return a template of `templates/` filled from `page` and `view`."""
    return _environment().get_template(name).render(page=page, **view)


def render_text(name: str, **view: object) -> str:
    """Return a template of plain text or Markdown, in which nothing is escaped."""
    return _environment().get_template(name).render(**view)


def write_page(render: Callable[[Mapping[str, Any]], str], summary: Mapping[str, Any], numbers: Path) -> Path:
    """Write a summary, sealed, to the file `numbers` and its page to `index.html` beside it; return the page's path.

    `render` and the file get the summary as `clean` leaves it, `render` also what stands in `goodput.json` there. Both
    texts exist before either file is touched, and each file is replaced in one step: a reader sees the old report or
    the new one, never half of one.
    """
    data = clean(summary)
    html = render(data | goodput_summary.read(numbers.parent))
    encoded = json.dumps(seal(data), indent=1, ensure_ascii=False, allow_nan=False)
    make_directory(numbers.parent)
    write_atomic(numbers, encoded + "\n")
    write_atomic(numbers.with_name("index.html"), html)
    return numbers.with_name("index.html")


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, "templates"),
        autoescape=lambda name: name is None or name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = JSON_FORMAT
    environment.filters |= {"percent": percent, "dash": _dash, "count": formats.count, "number": formats.number}
    environment.filters |= {
        "cell": _cell,
        "scientific": formats.scientific,
        "flops": formats.flops,
        "plural": formats.plural,
        "listed": formats.listed,
    }
    environment.globals |= {"static": _static, "plotly": _packed_plotly, "goodput_view": goodput_summary.view}
    return environment


def _dash(value: object) -> object:
    """Return a value; a dash for one that is missing."""
    return MISSING if value is None or value == "" else value


def _cell(value: object) -> str:
    """Return a value as it may stand in a cell of a Markdown table: on one line, its bars and brackets as text."""
    text = " ".join(str(_dash(value)).split())
    return "".join(f"\\{letter}" if letter in "|<`" else letter for letter in text)


def _static(name: str) -> Markup:
    """Return a style sheet or a script of the package, to stand in a page as it is."""
    return Markup((files(__package__) / "static" / name).read_text(encoding="utf-8"))


@functools.cache
def _packed_plotly() -> str:
    """Return plotly.js as the base64 of gzip: two fifths of its length, and each time the same."""
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()
