"""The SeqIO tasks and mixtures, which only the preparation of data imports; training reads prepared rows.

A document is `<bos> prompt answer <eos>`, or `<bos> text <eos>` for English. Every task has two output features of one
length: `tokens`, and `answer`, which is 1 on the answer's tokens and its `<eos>`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from distill_jax.data.arithmetic import equations, word_vocabulary
from distill_jax.data.arithmetic.tfds_builder import PARTS
from distill_jax.data.corpus import ENGLISH

# The work is strings and integers; leave the accelerator to JAX.
tf.config.set_visible_devices([], "GPU")

TOKENISE_BATCH = 1024

Preprocessor = Callable[[tf.data.Dataset], tf.data.Dataset]


class WordVocabulary(seqio.Vocabulary):
    """Present the shipped word-level vocabulary to SeqIO, in Python and in TensorFlow."""

    def __init__(self) -> None:
        super().__init__()
        self._words = word_vocabulary.WordVocabulary()
        entries = self._words.entries
        ids = tf.lookup.KeyValueTensorInitializer(entries, range(len(entries)), tf.string, tf.int32)
        self._table = tf.lookup.StaticHashTable(ids, word_vocabulary.UNK)

    @property
    def bos_id(self) -> int:
        return word_vocabulary.BOS

    @property
    def eos_id(self) -> int:
        return word_vocabulary.EOS

    @property
    def unk_id(self) -> int:
        return word_vocabulary.UNK

    @property
    def _base_vocab_size(self) -> int:
        return self._words.size

    def _encode(self, s: str) -> Sequence[int]:
        return self._words.encode(s)

    def _decode(self, ids: Iterable[int]) -> str:
        return self._words.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        spaced = tf.strings.regex_replace(tf.strings.lower(s), word_vocabulary.LONE_CHARACTER, r" \1 ")
        return self._table.lookup(tf.strings.split(spaced))

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        return tf.py_function(lambda row: self._words.decode(row.numpy().tolist()), [ids], tf.string)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WordVocabulary)


def load_vocabulary(config: equations.ArithmeticConfig) -> seqio.Vocabulary:
    """Load the config's vocabulary; ValueError if a SentencePiece model lacks `<bos>` or `<eos>`."""
    if config.vocabulary == "words":
        return WordVocabulary()
    model = seqio.SentencePieceVocabulary(config.vocabulary)
    if min(model.bos_id, model.eos_id) < 0:
        raise ValueError(
            f"data.vocabulary={config.vocabulary!r}: the model has no <bos> or no <eos>; train it with both"
        )
    return model


def make_tasks(config: equations.ArithmeticConfig, dataset: str | os.PathLike[str]) -> dict[str, seqio.Task]:
    """Make the tasks add, sub, mul, div, mul_shown, div_shown and, with English files, english.

    Args:
      config: the definition of the data.
      dataset: the directory of the built TFDS dataset (`builder.data_path`).
    """
    words = load_vocabulary(config)
    splits = {operation: "+".join(f"{operation}_{part}" for part in parts) for operation, parts in PARTS.items()}
    splits |= {f"{operation}_shown": f"{operation}_shown" for operation in equations.FORGET}
    used = tfds.decode.PartialDecoding({"prompt": True, "answer": True})
    tasks = {}
    for name, split in splits.items():
        source = seqio.TfdsDataSource(None, str(dataset), {"train": split}, decoders=used, read_only=True)
        tasks[name] = _task(name, source, [_question_and_answer(words)], words)
    if config.english:
        source = seqio.TextLineDataSource({"train": list(config.english)})
        tasks[ENGLISH] = _task(ENGLISH, source, [_drop_blank, _plain_text(words)], words)
    return tasks


def make_mixtures(config: equations.ArithmeticConfig, tasks: Mapping[str, seqio.Task]) -> dict[str, seqio.Mixture]:
    """Make the mixtures all, retain, forget and forget_shown out of `make_tasks`.

    Rates are shares of *tokens*, which `prepare` honours; SeqIO's own sampler would take them as shares of documents.
    In `retain` English stands in for * and /, so that + and - have the same share of it as of `all`: with 75 % English
    in `all`, 87.5 % in `retain`.
    """
    share = config.english_share
    each = (1 - share) / len(equations.OPERATIONS)
    rates = {
        "all": dict.fromkeys(equations.OPERATIONS, each) | {ENGLISH: share},
        "retain": dict.fromkeys(equations.RETAIN, each) | {ENGLISH: share and (1 + share) / 2},
        "forget": dict.fromkeys(equations.FORGET, 1 / 2),
        "forget_shown": dict.fromkeys([f"{operation}_shown" for operation in equations.FORGET], 1 / 2),
    }
    return {
        name: seqio.Mixture(name, [(tasks[task], rate) for task, rate in parts.items() if rate])
        for name, parts in rates.items()
    }


def _task(
    name: str, source: seqio.DataSource, preprocessors: list[Preprocessor], words: seqio.Vocabulary
) -> seqio.Task:
    features = {
        "tokens": seqio.Feature(words, add_eos=True),
        "answer": seqio.Feature(seqio.PassThroughVocabulary(2), add_eos=False),
    }
    return seqio.Task(name, source, features, preprocessors)


def _question_and_answer(words: seqio.Vocabulary) -> Preprocessor:
    def documents(batch: Mapping[str, tf.Tensor]) -> dict[str, tf.RaggedTensor]:
        bos, eos = _ends(words, batch["prompt"])
        prompt = tf.concat([bos, words.encode_tf(batch["prompt"])], axis=1)
        answer = tf.concat([words.encode_tf(batch["answer"]), eos], axis=1)
        mask = tf.concat([tf.zeros_like(prompt), tf.ones_like(answer)], axis=1)
        return {"tokens": tf.concat([prompt, answer], axis=1), "answer": mask}

    return _in_batches(documents)


def _plain_text(words: seqio.Vocabulary) -> Preprocessor:
    def documents(lines: tf.Tensor) -> dict[str, tf.RaggedTensor]:
        bos, eos = _ends(words, lines)
        tokens = tf.concat([bos, words.encode_tf(lines), eos], axis=1)
        return {"tokens": tokens, "answer": tf.zeros_like(tokens)}

    return _in_batches(documents)


def _ends(words: seqio.Vocabulary, texts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Make a column of `<bos>` and one of `<eos>`, each [texts, 1]."""
    return tf.fill([tf.size(texts), 1], words.bos_id), tf.fill([tf.size(texts), 1], words.eos_id)


def _in_batches(documents: Callable[..., dict[str, tf.RaggedTensor]]) -> Preprocessor:
    """Make a preprocessor that tokenises many texts in one call: a call for each text costs ten times as much."""
    plain = tf.autograph.experimental.do_not_convert(documents)
    return lambda dataset: dataset.batch(TOKENISE_BATCH).map(plain, tf.data.AUTOTUNE).unbatch()


def _drop_blank(dataset: tf.data.Dataset) -> tf.data.Dataset:
    return dataset.filter(lambda line: tf.strings.length(tf.strings.strip(line)) > 0)


def load_images(name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read a split of a TFDS image set whole: uint8 images [N, height, width, channels] and int64 labels [N]."""
    dataset = tfds.as_numpy(tfds.load(name, split=split, batch_size=-1))
    return dataset["image"], dataset["label"]
