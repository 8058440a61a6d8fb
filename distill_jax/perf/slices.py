"""TPU slices by their accelerator type: chips, how they are wired, and what one chip can do.

Peak FLOP/s, HBM and interconnect bandwidth are Google's published figures per chip
(cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}). The HBM a program may use is a little less than the chip has; these
are the limits that the compiler of libtpu 0.0.42 names when it refuses a program.

The network of a chip is the DCN bandwidth of the same pages: v5e 6.4 and v6e 25.6 Tbit/s a pod of 256 chips (2 × 100
and 4 × 200 Gbit/s a host of 8), v5p 50 and TPU7x 100 Gbit/s a chip. Of v4 they say none: v5p's is taken.

v5e and v6e count chips; v4, v5p and TPU7x (Ironwood) TensorCores, of which a chip has two. A v4 or v5p chip is one
device of JAX, a TPU7x chip two with half of its HBM each. Slices of TPU7x are named as XPK names them
(github.com/AI-Hypercomputer/xpk, system_characteristics.py): tpu7x-128 has 4 × 4 × 4 chips and 128 devices.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distill_jax.config import check, nearest

if TYPE_CHECKING:  # a wrong --slice is refused without it
    import jax

GIB = 2**30
MOST_IN_A_ROW = 256  # chips
MOST_SLICES = 9999
_TABLE = Path(__file__).with_name("slices.tsv")


@dataclasses.dataclass(frozen=True)
class Chip:
    """One generation.

    Attributes:
      platform: what libtpu calls it; config: how it presents a chip's TensorCores ("megacore": two as one device).
      hbm: bytes a program may use.
      flops: bf16 peak, FLOP/s.
      bandwidth: HBM, bytes/s.
      link: one interconnect link one way, bytes/s.
      wraps: the size from which an axis is a ring and not a line.
      network: bytes/s to and from a chip over the data-centre network, its part of the host's cards.
      kinds: what JAX calls such a device (`device_kind`).
      devices: that JAX has of a chip, and that share what it has equally.
    """

    platform: str
    config: str
    hbm: float
    flops: float
    bandwidth: float
    link: float
    wraps: int
    network: float
    kinds: tuple[str, ...]
    devices: int = 1


CHIPS = {
    "v4": Chip("v4", "megacore", 30.75 * GIB, 275e12, 1228e9, 50e9, 4, 6.25e9, ("TPU v4",)),
    "v5e": Chip("v5e", "default", 15.75 * GIB, 197e12, 819e9, 50e9, 16, 3.125e9, ("TPU v5 lite", "TPU v5e")),
    "v5p": Chip("v5", "megacore", 95.74 * GIB, 459e12, 2765e9, 100e9, 4, 6.25e9, ("TPU v5", "TPU v5p")),
    "v6e": Chip("v6e", "default", 31.25 * GIB, 918e12, 1640e9, 100e9, 16, 12.5e9, ("TPU v6 lite", "TPU v6e")),
    "tpu7x": Chip("tpu7x", "default", 189.50 * GIB, 2307e12, 7380e9, 100e9, 4, 12.5e9, ("TPU7x", "TPU7"), devices=2),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice, or several equal ones: the accelerator type, generation and shape of one in chips, and how many.

    Between slices there is only the data-centre network. Two of v5e-16 are named 2xv5e-16.
    """

    name: str
    generation: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chip(self) -> Chip:
        """What each of its chips can do."""
        return CHIPS[self.generation]

    @property
    def chips(self) -> int:
        """How many chips there are, of all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def devices(self) -> int:
        """How many devices JAX has of them."""
        return self.chips * self.chip.devices

    @property
    def device_hbm(self) -> float:
        """Bytes that a program may use on each device."""
        return self.chip.hbm / self.chip.devices

    @property
    def device_flops(self) -> float:
        """The bf16 peak of a device, FLOP/s."""
        return self.chip.flops / self.chip.devices

    @property
    def device_bandwidth(self) -> float:
        """Bytes/s between a device and its HBM."""
        return self.chip.bandwidth / self.chip.devices

    @property
    def device_network(self) -> float:
        """Bytes/s that a device can receive over the data-centre network."""
        return self.chip.network / self.chip.devices

    @property
    def topology(self) -> str:
        """The name of one slice for libtpu."""
        return f"{self.chip.platform}:{'x'.join(map(str, self.shape))}"

    @property
    def gke_label(self) -> str:
        """What Kubernetes' nodes call its generation: their label cloud.google.com/gke-tpu-accelerator."""
        return _table()[self.generation]["gke_label"]

    @property
    def chips_per_host(self) -> tuple[int, int, int]:
        """The block of chips that one host drives."""
        return (1, 1, 1) if math.prod(self.shape) == 1 else (2, 2, 1)

    @property
    def hosts(self) -> int:
        """How many hosts drive it: each has four chips, and the smallest slices, up to 2x4, have one host."""
        return 1 if self.chips <= 4 or (self.shape == (2, 4) and self.slices == 1) else self.chips // 4

    @property
    def interconnect(self) -> float:
        """Bytes/s that a chip can receive over its links: two an axis, one at the end of a line.

        Devices of one chip can pass on to each other what came in once.
        """
        # Small 3D slices have no rings: an axis of such a slice is one only where all are multiples of 4.
        rings = len(self.shape) == 2 or all(n % 4 == 0 for n in self.shape)
        return self.chip.link * sum(2 if rings and n >= self.chip.wraps else 1 for n in self.shape if n > 1)


def _table() -> dict[str, dict[str, str]]:
    """Return the rows of slices.tsv by generation; launch/common.sh reads the same file."""
    lines = [line.split("\t") for line in _TABLE.read_text().splitlines()]
    heading, *rows = [line for line in lines if len(line) > 1]
    names = [heading[0].removeprefix("# "), *heading[1:]]
    return {row[0]: dict(zip(names, row, strict=True)) for row in rows}


def _shapes(row: dict[str, str]) -> list[tuple[int, ...]]:
    """Return one shape for each number of chips that a generation has: of several the most cubic."""
    listed = [tuple(map(int, shape.split("x"))) for shape in row["topologies"].split(",")]
    cubes: dict[int, tuple[int, ...]] = {}
    most = int(row["cubes"])
    for a, b, c in itertools.combinations_with_replacement(range(1, min(most, MOST_IN_A_ROW // 4) + 1), 3):
        n, shape = a * b * c, (4 * a, 4 * b, 4 * c)
        if n <= most and (n not in cubes or sum(shape) < sum(cubes[n])):
            cubes[n] = shape
    return [*listed, *(cubes[n] for n in sorted(cubes))]


SLICES = {
    name: Slice(name, generation, shape)
    for generation, row in _table().items()
    for shape in _shapes(row)
    for name in [f"{generation}-{math.prod(shape) * int(row['counted'])}"]
}


def find(name: str) -> Slice:
    """Return the slice of an accelerator type, or several: v5e-16, 2xv5e-16.

    Raises:
      ConfigError: if there is none, listing those there are.
    """
    known = "; ".join(f"{generation}-{_listed(generation)}" for generation in CHIPS)
    many, one = re.fullmatch(r"(?:(\d+)x)?(.*)", name, re.DOTALL).groups()  # type: ignore[union-attr]
    what = f"no such slice{nearest(one, SLICES)}; there are auto and {known}, and several as in 2xv5e-16"
    check(one in SLICES, f"--slice={name}: {what}")
    slices = int((many or "1")[:6])
    fix_hint = f"1 to {MOST_SLICES}, as in 2x{one}"
    check(1 <= slices <= MOST_SLICES, f"--slice={name}: {many} slices of {one}; give {fix_hint}")
    return SLICES[one] if slices == 1 else dataclasses.replace(SLICES[one], name=name, slices=slices)


def of_devices(devices: Sequence[jax.Device]) -> Slice | None:
    """Return the slice, or several, that devices are; None if their kind is not in the table, or they are no box."""
    generations = [name for name, chip in CHIPS.items() if {device.device_kind for device in devices} <= {*chip.kinds}]
    if not generations:
        return None
    generation, indices = generations[0], {getattr(device, "slice_index", 0) for device in devices}
    first = [tuple(d.coords) for d in devices if getattr(d, "slice_index", 0) == min(indices)]
    axes = len(next(s.shape for s in SLICES.values() if s.generation == generation))
    shape = tuple(max(places) - min(places) + 1 for places in zip(*first, strict=True))[:axes]
    where = Slice(f"{len(devices)} of {generation}", generation, shape, len(indices))
    return where if where.devices == len(devices) else None


def _listed(generation: str) -> str:
    sizes = [s.name.split("-")[1] for s in SLICES.values() if s.generation == generation]
    more = f" and, of the further multiples of 128 up to {sizes[-1]}, most" if len(sizes) > 20 else ""
    return "|".join(sizes[:12] if more else sizes) + more
