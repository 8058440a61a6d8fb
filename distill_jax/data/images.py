"""Images of digits: `python -m distill_jax.data.images --config=FILE.json --output=DIR`.

scikit-learn ships real ones (1,797 of 8 × 8 pixels), so the default needs no network; MNIST comes through TFDS.
Written are train.npz and test.npz, each with `images` fp32 [N, pixels] in [-1, 1] and `labels` int32 [N], and last the
manifest.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import ClassVar

import numpy as np

from distill_jax.config import check
from distill_jax.data import import_tf
from distill_jax.data.atomic_build import log, make_once, run_command_line
from distill_jax.data.data_config import DataConfig
from distill_jax.io.files import digest
from distill_jax.io.staging import local_copy
from distill_jax.io.storage import location
from distill_jax.types import JsonObject

TEST = 360  # of the 1,797 digits


@dataclasses.dataclass(frozen=True)
class ImagesConfig(DataConfig):
    """Which images.

    Attributes:
      source: "digits" (scikit-learn) or "mnist" (TFDS, which downloads it once to $TFDS_DATA_DIR).
    """

    source: str = "digits"

    PREPARE: ClassVar[str] = "distill_jax.data.images"
    MEASURE: ClassVar[str] = ""  # the stage that reads them has its own
    SETS: ClassVar[tuple[str, ...]] = ()  # no packed rows

    def __post_init__(self) -> None:
        check(self.source in SOURCES, f"data.source = {self.source!r}: choose one of {', '.join(SOURCES)}")

    @property
    def pixels(self) -> int:
        """Pixels of one image."""
        return PIXELS[self.source]


def load(directory: str | os.PathLike[str], split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read the prepared images, fp32 [N, pixels], and labels, int32 [N], of "train" or "test"."""
    with np.load(local_copy(location(directory) / f"{split}.npz")) as file:
        return file["images"], file["labels"]


def prepare(config: ImagesConfig, directory: str | os.PathLike[str]) -> JsonObject:
    """Write both splits and the manifest, and return it; a directory already finished is left as it is."""

    def build(work: Path) -> JsonObject:
        entries = {}
        for split, (images, labels) in SOURCES[config.source]().items():
            path = work / f"{split}.npz"
            np.savez_compressed(path, images=images.astype(np.float32), labels=labels.astype(np.int32))
            log(f"{config.source} {split}: {len(images):,} images of {images.shape[1]} pixels")
            entries[split] = {"file": path.name, "tokens": len(images), "sha256": digest(path)}
        return {"sets": {"train": entries["train"]}, "evaluation": entries["test"]}

    return make_once(directory, {"config": dataclasses.asdict(config)}, build)


def _digits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    from sklearn import datasets

    digits = datasets.load_digits()
    order = np.random.RandomState(0).permutation(len(digits.data))  # the file is in the order of its writers
    images, labels = digits.data[order] / 8.0 - 1.0, digits.target[order]  # 0 ... 16 to -1 ... 1
    return {"train": (images[TEST:], labels[TEST:]), "test": (images[:TEST], labels[:TEST])}


def _mnist() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    _, tasks = import_tf.import_builder_and_tasks()
    splits = {split: tasks.load_images("mnist", split) for split in ("train", "test")}
    return {
        split: (images.reshape(len(images), -1) / 127.5 - 1.0, labels) for split, (images, labels) in splits.items()
    }


SOURCES = {"digits": _digits, "mnist": _mnist}
PIXELS = {"digits": 64, "mnist": 784}


if __name__ == "__main__":
    run_command_line("distill_jax.data.images", ImagesConfig, prepare, None)
