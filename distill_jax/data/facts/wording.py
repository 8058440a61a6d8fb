"""How a question with its answer becomes tokens: as plain text, or as the model's own chat template puts it."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from distill_jax.config import check
from distill_jax.data.facts.facts import Question
from distill_jax.data.multiple_choice.prepare_quiz import Prompts
from distill_jax.data.multiple_choice.questions import pair
from distill_jax.data.text import hf_tokenizer
from distill_jax.data.text.chat_template import ASSISTANT, USER, ChatTemplate
from distill_jax.data.text.sentencepiece_vocab import Vocabulary


class Answered(NamedTuple):
    """Tokens of a question with its answer.

    Attributes:
      begin: what begins a document beside what begins a prompt: `<bos>`, where the model's prompts have none.
      before: the prompt; end: what ends the answer.
    """

    begin: list[int]
    before: list[int]
    answer: list[int]
    end: list[int]


class Wording(Protocol):
    """A way of asking."""

    def __call__(self, asked: Question) -> Answered:
        """Return the tokens; ConfigError if the answer has none of its own."""


class PlainWording:
    """The question, a space and the answer; `<eos>` ends them."""

    def __init__(self, words: Vocabulary) -> None:
        self._encoder, self._begin, self._end = Prompts(words), words.bos_id(), words.eos_id()

    def __call__(self, asked: Question) -> Answered:
        """Return the tokens."""
        before, answer = pair(self._encoder, asked.question, f" {asked.answer}")
        _check_answer(asked, answer)
        begin = [] if before[:1] == [self._begin] else [self._begin]
        return Answered(begin, before, answer, [self._end])


class ChatWording:
    """A conversation by the model's template, whose special tokens are tokens; nothing else begins or ends it."""

    def __init__(self, words: hf_tokenizer.Tokenizer, template: ChatTemplate) -> None:
        self._words, self._template = words, template

    def __call__(self, asked: Question) -> Answered:
        """Return the tokens."""
        before = self._template.question(asked.question)
        messages = [{"role": USER, "content": asked.question}, {"role": ASSISTANT, "content": asked.answer}]
        text = self._template.render(messages)
        stands = text.startswith(before) and asked.answer in text[len(before) :]
        mend = "leave --chat out, and questions are read as they are"
        check(stands, f"question {asked.question!r}: answered, the chat template writes it in another way; {mend}")
        until = text.index(asked.answer, len(before)) + len(asked.answer)
        first, second, third = (self._words.encode_as_is(part) for part in (before, text[:until], text))
        if second[: len(first)] != first:  # a space that ends the prompt is part of the answer's first token
            first = self._words.encode_as_is(before.rstrip(" "))
        answer = second[len(first) :]
        joined = second[: len(first)] != first or third[: len(second)] != second
        check(not joined, f"question {asked.question!r}: the tokenizer joins its answer with the chat template; {mend}")
        _check_answer(asked, answer)
        return Answered([], first, answer, third[len(second) :] or [self._words.eos_id()])


def _check_answer(asked: Question, answer: list[int]) -> None:
    mend = "the tokenizer joins it with what stands before; begin it otherwise"
    check(len(answer) > 0, f"question {asked.question!r}: its answer has no token of its own: {mend}")
