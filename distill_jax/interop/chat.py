"""Questions and conversations -> the tokens that a model reads, by its own template."""

from __future__ import annotations

from collections.abc import Sequence

from distill_jax.config import check
from distill_jax.data.text.chat_template import Message, load_template
from distill_jax.interop import tokenizers
from distill_jax.io.gguf_header import is_gguf
from distill_jax.io.staging import local_input


class Chat:
    """A model's tokenizer and its template.

    What spells a special token in the text that a template wrote is that token, and nothing is put before it: the
    template writes `<bos>` itself where the model wants it.

    Args:
      where: the tokenizer, as `tokenizers.load` takes it.

    Raises:
      ConfigError: if there is no template, or no tokenizer.json, which alone knows special tokens within a text.
    """

    def __init__(self, where: str):
        check(where not in ("", tokenizers.WORDS), "--chat: the model has no tokenizer of its own, and so no template")
        path = local_input(where)
        self._template = load_template(path if path.is_dir() or is_gguf(path) else path.parent)
        self._tokenizer = tokenizers.load(where)
        fix_hint = "save the model with its fast tokenizer"
        check(self._tokenizer.finds_special, f"{where}: --chat needs {tokenizers.JSON}; {fix_hint}")
        self.decode = self._tokenizer.decode

    def question(self, text: str) -> str:
        """Return what stands before the model's answer to a question."""
        return self._template.question(text)

    def conversation(self, messages: Sequence[Message]) -> str:
        """Return the text of a conversation."""
        return self._template.render(messages)

    def encode(self, text: str) -> list[int]:
        """Turn text that the template wrote into ids."""
        return self._tokenizer.encode_as_is(text)
