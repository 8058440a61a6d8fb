"""Compile a program for a TPU slice that is not there, and keep what the compiler says of it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh

from distill_jax.config import check
from distill_jax.console import captured_stderr
from distill_jax.perf import hlo
from distill_jax.perf.collectives import collectives
from distill_jax.perf.slices import Slice
from distill_jax.perf.traffic import traffic_by_part
from distill_jax.types import JsonObject

INSTALL = "plan needs the TPU compiler, which is not installed: pip install 'distill-jax[plan]' (0.5 GB, no TPU needed)"


@dataclasses.dataclass(frozen=True)
class ProgramAnalysis:
    """What the compiler says of one program on one device.

    Attributes:
      hbm: bytes by kind, without "code" if none was generated; {} if the compiler refused the program for its size.
      needed: bytes in all.
      collectives: {kind: {"count", "bytes"}} a step, inside a slice; network: the same between slices.
      traffic: HBM bytes a step by part of the model.
      unbounded_loops: loops whose length could not be read.
      seconds: of compiling.
      warnings: the partitioner's.
    """

    hbm: Mapping[str, int]
    needed: int
    collectives: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    network: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    traffic: Mapping[str, int] = dataclasses.field(default_factory=dict)
    unbounded_loops: int = 0
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()

    @property
    def final(self) -> bool:
        """Whether the compiler went to its end, after which nothing can be larger."""
        return not self.hbm or "code" in self.hbm

    def as_json(self) -> JsonObject:
        """Return it as `from_json` takes it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: JsonObject) -> ProgramAnalysis:
        """Return the analysis that `as_json` wrote.

        Raises:
          TypeError: if the value has other keys.
        """
        return cls(**{**value, "warnings": tuple(value["warnings"])})


def compiler_version() -> str:
    """Return the version of the installed TPU compiler.

    Raises:
      ConfigError: if there is none.
    """
    check(importlib.util.find_spec("libtpu") is not None, INSTALL)
    return importlib.metadata.version("libtpu")


def topology(where: Slice) -> list[jax.Device]:
    """Return the devices of a slice, or of several, for compiling only."""
    from jax.experimental import topologies

    with captured_stderr():
        description = topologies.get_topology_desc(
            platform="tpu",
            topology_name=where.topology,
            chip_config_name=where.chip.config,
            chips_per_host_bounds=where.chips_per_host,
            num_slices=where.slices,
        )
    return list(description.devices)


def compile_for(lowered: jax.stages.Lowered, mesh: Mesh, dump: Path | None = None) -> ProgramAnalysis:
    """Compile a program that was lowered for a mesh of a slice's devices, and read what it takes.

    Args:
      dump: directory to which the compiler writes what `perf.schedule` reads.
    """
    began = time.monotonic()
    options: dict[str, str | bool] | None = {"xla_dump_to": str(dump), "xla_dump_hlo_as_text": True} if dump else None
    with captured_stderr() as printed:
        try:
            compiled = lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            return ProgramAnalysis({}, refused_bytes(str(error)), seconds=time.monotonic() - began)
    analysis = analyse(compiled, slices_of(mesh))
    return dataclasses.replace(analysis, seconds=time.monotonic() - began, warnings=partitioner_warnings(printed))


def slices_of(mesh: Mesh) -> list[int]:
    """Return the slice of each device of a mesh."""
    return [getattr(device, "slice_index", 0) for device in mesh.devices.flat]


def analyse(compiled: jax.stages.Compiled, slice_of: Sequence[int]) -> ProgramAnalysis:
    """Read a compiled program's memory, traffic and collectives.

    Args:
      slice_of: the slice of each of its devices.
    """
    m = compiled.memory_analysis()
    assert m is not None  # every TPU program has one
    hbm = {
        "arguments": m.argument_size_in_bytes,
        "outputs": m.output_size_in_bytes,
        "aliased": m.alias_size_in_bytes,
        "temporaries": m.temp_size_in_bytes,
        "code": m.generated_code_size_in_bytes,
    }
    return read_program(compiled.as_text() or "", hbm, slice_of)


def read_program(text: str, hbm: Mapping[str, int], slice_of: Sequence[int]) -> ProgramAnalysis:
    """Read a scheduled program's traffic and collectives from its text.

    Args:
      hbm: as of `ProgramAnalysis`; slice_of: as of `analyse`.
    """
    module, entry = hlo.parse(text)
    inside, across = collectives(module, entry, slice_of)
    return ProgramAnalysis(
        hbm=hbm,
        needed=sum(hbm.values()) - 2 * hbm["aliased"],
        collectives=inside,
        network=across,
        traffic=traffic_by_part(module, entry),
        unbounded_loops=hlo.runs(module, entry)[1],
    )


def refused_bytes(message: str) -> int:
    """Return the bytes that the compiler says a program needs, from its refusal.

    Raises:
      RuntimeError: with the message, if it is about anything else.
    """
    size = re.search(r"(?:required[^(]*\(|Used )([\d.]+)([KMGT])", message)
    if "RESOURCE_EXHAUSTED" not in message or not size:
        raise RuntimeError(message)
    return int(float(size[1]) * 2 ** {"K": 10, "M": 20, "G": 30, "T": 40}[size[2]])


def partitioner_warnings(printed: Iterable[str]) -> tuple[str, ...]:
    """Return what is worth saying of the lines that the compiler printed."""
    rematerialised = sum("nvoluntary full rematerialization" in line for line in printed)
    if not rematerialised:
        return ()
    return (f"the partitioner replicated {rematerialised} tensors to change their layout",)
