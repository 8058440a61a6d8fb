"""Filter documents with a few labels: the baseline that a robust unlearning method has to beat at equal labels."""

from __future__ import annotations

import dataclasses

import numpy as np

from distill_jax.data.corpus import Corpus


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
