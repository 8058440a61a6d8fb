"""Text as SeqIO tasks, one for several shards of a source.

It imports TensorFlow, as only the preparation of data does.

A document is `<bos> text <eos>`. One that is longer than a piece comes as several examples, told by `first`; each has
`tokens`, the `bytes` of its text, and their `hash`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from distill_jax.data import lines
from distill_jax.data.text import hf_tokenizer
from distill_jax.data.text.readers import Piece, Reader
from distill_jax.data.text.sources import Shard

# The work is strings and integers; leave the accelerator to JAX.
tf.config.set_visible_devices([], "GPU")

Preprocessor = Callable[[tf.data.Dataset], tf.data.Dataset]
BATCH = 256  # examples at a time: a step from Python to TensorFlow costs more than a document's tokens
# What stands for the layout of a page in Wiki-40B's text, and is no language.
WIKI40B_MARKS = r"_NEWLINE_|_START_ARTICLE_|_START_SECTION_|_START_PARAGRAPH_"

Columns = dict[str, list[str | bool]]


class TextTask:
    """Shards of one source as a SeqIO task, whose making takes as long as a few thousand documents.

    Attributes:
      task: it.
      readers: what counts the documents that were left out; none of TFDS, whose shards are one task each.
      failure: the error that ended the reading, which TensorFlow hides in its own.
    """

    def __init__(self, shards: Sequence[Shard], words: seqio.Vocabulary, skip_broken: bool) -> None:
        self.failure: Exception | None = None
        features = {"tokens": seqio.Feature(words, add_eos=True)}
        if shards[0].source.kind == "tfds":
            (shard,) = shards
            self.readers: list[Reader] = []
            self.task = seqio.Task("text", _tfds(shard), features, [_texts(shard), _tokenise(words)])
        else:
            self.readers = [Reader(shard, skip_broken) for shard in shards]
            source = seqio.FunctionDataSource(self._dataset, ("train",))
            self.task = seqio.Task("text", source, features, [_tokenise(words)])

    def batches(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield {"tokens": flat, "lengths", "first", "bytes", "hash": one an example} for many examples at a time."""
        dataset = self.task.get_dataset(split="train", shuffle=False, try_in_mem_cache=False)
        try:
            for batch in dataset.ragged_batch(BATCH):
                tokens = batch.pop("tokens")
                flat = {"tokens": tokens.flat_values.numpy(), "lengths": tokens.row_lengths().numpy()}
                yield flat | {name: value.numpy() for name, value in batch.items()}
        except tf.errors.OpError:
            if self.failure:
                raise self.failure from None
            raise

    def _dataset(self, split: str, shuffle_files: bool) -> tf.data.Dataset:
        del split, shuffle_files
        texts, flags = tf.TensorSpec([None], tf.string), tf.TensorSpec([None], tf.bool)
        signature = {"text": texts, "first": flags, "last": flags}
        return tf.data.Dataset.from_generator(self._generate, output_signature=signature)

    def _generate(self) -> Iterator[Columns]:
        buffer: list[Piece] = []
        try:
            for piece in itertools.chain.from_iterable(self.readers):
                buffer.append(piece)
                if len(buffer) == BATCH or not piece.last:
                    yield _columns(buffer)
                    buffer = []
        except Exception as error:
            self.failure = error
            raise
        if buffer:
            yield _columns(buffer)


class PublishedVocabulary(seqio.Vocabulary):
    """A published model's tokenizer for SeqIO."""

    def __init__(self, words: hf_tokenizer.Tokenizer) -> None:
        super().__init__()
        self._words = words

    @property
    def bos_id(self) -> int:
        return self._words.bos_id()

    @property
    def eos_id(self) -> int:
        return self._words.eos_id()

    @property
    def unk_id(self) -> int:
        return self._words.unk_id()

    @property
    def _base_vocab_size(self) -> int:
        return self._words.get_piece_size()

    def _encode(self, s: str) -> list[int]:
        return self._words.encode([s])[0]

    def _decode(self, ids: Iterable[int]) -> str:
        return self._words.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        def encode(texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            encoded = self._words.encode([text.decode("utf-8", "replace") for text in texts])
            lengths = np.array([len(ids) for ids in encoded], np.int64)
            return np.fromiter(itertools.chain.from_iterable(encoded), np.int32, lengths.sum()), lengths

        ids, lengths = tf.numpy_function(encode, [s], (tf.int32, tf.int64))
        ids.set_shape([None])
        lengths.set_shape([None])
        return tf.RaggedTensor.from_row_lengths(ids, lengths)

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        raise NotImplementedError


def load_vocabulary(model: Path) -> seqio.Vocabulary:
    """Load a SentencePiece model or a published tokenizer for SeqIO."""
    if model.suffix == ".json":
        return PublishedVocabulary(hf_tokenizer.Tokenizer(model))
    return seqio.SentencePieceVocabulary(str(model))


def texts(shard: Shard) -> Iterator[Piece]:
    """Yield the texts of a TFDS shard."""
    dataset = _texts(shard)(_tfds(shard).get_dataset(split="train", shuffle=False))
    for batch in dataset.as_numpy_iterator():
        yield from (Piece(text.decode("utf-8", "replace")) for text in batch["text"])


def _columns(pieces: list[Piece]) -> Columns:
    return dict(zip(Piece._fields, map(list, zip(*pieces, strict=True)), strict=True))


def _tokenise(words: seqio.Vocabulary) -> Preprocessor:
    def examples(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        bos, eos = (
            tf.RaggedTensor.from_row_lengths(tf.fill([tf.math.count_nonzero(mark)], token), tf.cast(mark, tf.int64))
            for mark, token in ((batch["first"], words.bos_id), (batch["last"], words.eos_id))
        )
        text = batch["text"]
        return {
            "tokens": tf.concat([bos, words.encode_tf(text), eos], axis=1),
            "first": batch["first"],
            "bytes": tf.strings.length(text),
            "hash": tf.strings.to_hash_bucket_fast(text, 2**62),
        }

    plain = tf.autograph.experimental.do_not_convert(examples)
    return lambda dataset: dataset.map(plain, tf.data.AUTOTUNE).unbatch()


def _tfds(shard: Shard) -> seqio.DataSource:
    where = f"tfds:{shard.path}"
    try:
        builder = tfds.builder(shard.path)
    except Exception as error:  # DatasetNotFoundError and whatever a builder's module raises
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{where}: {reason}; set TFDS_DATA_DIR to where it is prepared") from error
    known = ", ".join(builder.info.splits)
    split = shard.source.split
    if known and split not in builder.info.splits:
        raise ValueError(f"{where}: has no split {split!r} but {known}; name one as ?split=")
    if builder.info.features:
        try:
            lines.value_at(dict(builder.info.features), shard.source.field)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    name, _, version = builder.info.full_name.rpartition("/")
    part = f"{split}[{shard.start}%:{shard.stop}%]"
    return seqio.TfdsDataSource(f"{name}:{version}", splits={"train": part})


def _texts(shard: Shard) -> Preprocessor:
    marks = WIKI40B_MARKS if shard.path.startswith("wiki40b") else ""

    def text(record: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        texts = lines.value_at(record, shard.source.field)
        if marks:
            texts = tf.strings.strip(tf.strings.regex_replace(texts, rf"(\s*({marks})\s*)+", "\n"))
        texts = tf.boolean_mask(texts, tf.strings.length(texts) > 0)
        complete = tf.ones_like(texts, tf.bool)
        return {"text": texts, "first": complete, "last": complete}

    plain = tf.autograph.experimental.do_not_convert(text)
    return lambda dataset: dataset.batch(BATCH).map(plain, tf.data.AUTOTUNE)
