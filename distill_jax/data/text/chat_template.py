"""A model's own template of a conversation: messages -> the text that it reads, as transformers writes it.

The template is code that came with the model: Jinja, run where it can reach nothing but what it is given.
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from distill_jax.config import ConfigError, check
from distill_jax.data.text.gguf_tokenizer import SETTINGS, tokenizer_files
from distill_jax.io.files import read_json
from distill_jax.io.gguf_header import is_gguf
from distill_jax.io.staging import local_input
from distill_jax.types import JsonObject

FILE = "chat_template.jinja"
USER, ASSISTANT = "user", "assistant"
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")

Message = Mapping[str, str]


class ChatTemplate:
    """A template and the special tokens that it may name.

    Args:
      source: the template.
      tokens: the special tokens by their names, `bos_token` and so on.
      where: the file, for errors.

    Raises:
      ConfigError: if it is no template.
    """

    def __init__(self, source: str, tokens: Mapping[str, str], where: str):
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        # What transformers gives templates.
        environment.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)
        environment.globals |= {"raise_exception": _raise, "strftime_now": _now}
        self._tokens, self._where = dict(tokens), where
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ConfigError(f"{where}: chat_template: {_one_line(error)}") from error

    def render(self, messages: Sequence[Message]) -> str:
        """Return the text of a conversation; unless the model has the last word, its turn is begun.

        Raises:
          ConfigError: if the template refuses it, with its words.
        """
        begin = messages[-1]["role"] != ASSISTANT
        given = {"messages": list(messages), "add_generation_prompt": begin, "tools": None, "documents": None}
        try:
            return self._template.render(**given, **self._tokens)
        except Exception as error:  # of whatever kind a template's code may raise
            raise ConfigError(f"{self._where}: chat_template: {_one_line(error)}") from error

    def question(self, text: str) -> str:
        """Return what stands before the model's answer to a question."""
        return self.render([{"role": USER, "content": text}])


def load_template(where: str | Path) -> ChatTemplate:
    """Load the template of a model: of its directory, or of its GGUF file.

    Raises:
      ConfigError: if it has none.
    """
    path = local_input(where)
    settings, own = _settings(path), path / FILE
    given = own.read_text("utf-8") if own.is_file() else settings.get("chat_template")
    if isinstance(given, list):  # several, by their names
        given = next((each.get("template") for each in given if each.get("name") == "default"), None)
    fix_hint = "leave --chat out, and text is read as it is"
    check(isinstance(given, str), f"{where}: has no chat template; {fix_hint}")
    return ChatTemplate(str(given), _special_tokens(settings), str(where))


def _settings(path: Path) -> JsonObject:
    if is_gguf(path):
        return tokenizer_files(path)[SETTINGS]
    file = path / SETTINGS
    settings: JsonObject = read_json(file) if file.is_file() else {}
    return settings


def _special_tokens(settings: JsonObject) -> dict[str, str]:
    """Return the special tokens; each is a text, or an object with its text and how it is found."""
    held = {name: settings.get(name) for name in SPECIAL}
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in held.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _raise(message: str) -> None:
    raise ValueError(message)


def _now(layout: str) -> str:
    return datetime.datetime.now().strftime(layout)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
