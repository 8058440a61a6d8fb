"""The arithmetic data as a TensorFlow dataset, generated on this machine; imported only while data is prepared."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import os
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from distill_jax.data.arithmetic import equations

# Each operation's examples lie in one split for each part, so a reader takes what it may see and no more.
PARTS = {operation: ("retain",) for operation in equations.RETAIN} | {
    operation: ("shown", "heldout") for operation in equations.FORGET
}
Numbered = tuple[int, dict[str, str | int]]  # an example's number and its fields
PAPER = equations.ArithmeticConfig()
_FIELDS = [field for field in dataclasses.fields(equations.Example) if field.name != "part"]  # the split says it


@dataclasses.dataclass(eq=False)
class ArithmeticBuilderConfig(tfds.core.BuilderConfig):
    """Carry the definition of the data into TFDS."""

    data: equations.ArithmeticConfig = PAPER


class Arithmetic(tfds.core.GeneratorBasedBuilder):
    """Equations and word problems in the splits {add,sub}_retain, {mul,div}_shown and {mul,div}_heldout."""

    name = "distill_arithmetic"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [ArithmeticBuilderConfig(name="paper", description="The settings of arXiv 2506.06278.")]

    # Nothing is downloaded, so there are no checksums; to look for them TFDS 4.9.10 needs importlib_resources, which it
    # does not install.
    url_infos = None

    def _info(self) -> tfds.core.DatasetInfo:
        text, number = tfds.features.Text(), tfds.features.Scalar(np.int64)
        features = {field.name: number if field.type == "int" else text for field in _FIELDS}
        # The generator's order is already random and seeded; TFDS's own shuffle would only cost time.
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[Numbered]]:
        del dl_manager  # nothing is downloaded
        splits = [(operation, part) for operation, parts in PARTS.items() for part in parts]
        return {f"{operation}_{part}": self._generate_examples(operation, part) for operation, part in splits}

    def _generate_examples(self, operation: str, part: str) -> Iterator[Numbered]:
        count = 0
        for form in equations.FORMS:
            for example in equations.training_examples(self.builder_config.data, operation, form):
                if example.part == part:
                    yield count, {key: value for key, value in dataclasses.asdict(example).items() if key != "part"}
                    count += 1


def build(config: equations.ArithmeticConfig, directory: str | os.PathLike[str]) -> Arithmetic:
    """Generate the dataset of a config under a directory, unless it is there, and return its builder."""
    tfds.disable_progress_bar()
    identity = hashlib.sha256(repr(config).encode()).hexdigest()[:16]
    builder = Arithmetic(data_dir=os.fspath(directory), config=ArithmeticBuilderConfig(name=identity, data=config))
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download that does not take place
        builder.download_and_prepare()
    return builder
