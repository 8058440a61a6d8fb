"""Labels of what is to be forgotten, right or wrong, and the sets that they make: filters, against which to compare.

A labeller marks documents, or in them the tokens that teach what is to be forgotten: the answers of its questions.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from distill_jax.data.corpus import Corpus
from distill_jax.data.packing import MARKED


@dataclasses.dataclass(frozen=True)
class NaiveBayes:
    """Tell forget from retain documents by their tokens: multinomial naive Bayes with add-one smoothing.

    Attributes:
      weights: float64 [V], log P(token | forget) - log P(token | retain).
      prior: log P(forget) - log P(retain).
    """

    weights: np.ndarray
    prior: float

    @classmethod
    def learn(cls, documents: Corpus, labelled: np.ndarray, forget: np.ndarray) -> NaiveBayes:
        """Learn from the documents `labelled` int [n] and what an annotator says of each, `forget` bool [n]."""
        size = int(documents.tokens.max()) + 1
        counts = np.ones((2, size))
        for index, label in zip(labelled, forget, strict=True):
            counts[int(label)] += np.bincount(documents[index].tokens, minlength=size)
        kept, forgotten = np.log(counts / counts.sum(axis=1, keepdims=True))
        # An annotator who has seen one kind only has no ground to drop or keep anything by its frequency.
        share = np.clip(forget.mean(), 1e-6, 1 - 1e-6)
        return cls(forgotten - kept, float(np.log(share / (1 - share))))

    def forgets(self, documents: Corpus) -> np.ndarray:
        """Return for each document whether it is taken for one to forget, bool [documents]."""
        sums = np.concatenate([[0.0], np.cumsum(self.weights[documents.tokens])])
        return self.prior + sums[documents.bounds[1:]] - sums[documents.bounds[:-1]] > 0


def with_errors(truth: np.ndarray, false_positives: float, false_negatives: float, draws: np.ndarray) -> np.ndarray:
    """Return what a classifier says that errs at random, bool [n].

    Args:
      truth: bool [n], whether each is to be forgotten.
      false_positives: the share of those to retain that it takes for ones to forget; false_negatives: the other way.
      draws: uniform on [0, 1), [n].
    """
    return np.where(truth, draws >= false_negatives, draws < false_positives)


def realised_errors(truth: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the shares of those to retain, and of those to forget, that labels take for the other."""
    positives, negatives = (labels & ~truth).sum(), (truth & ~labels).sum()
    return {
        "false_positive_rate": round(float(positives / max((~truth).sum(), 1)), 6),
        "false_negative_rate": round(float(negatives / max(truth.sum(), 1)), 6),
    }


def to_tokens(documents: Corpus, labels: np.ndarray) -> np.ndarray:
    """Return each token's label, bool [tokens], from those of documents: the answers of those to forget."""
    return np.repeat(labels, documents.lengths) & (documents.answer > 0)


def with_marks(documents: Corpus, marks: np.ndarray) -> Corpus:
    """Return the documents with tokens marked, from which nothing is learned: `MARKED` in `answer`."""
    return dataclasses.replace(documents, answer=np.where(marks, MARKED, documents.answer))
