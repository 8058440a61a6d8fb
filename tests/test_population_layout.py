"""How many devices a population takes: none computes padding, and a member lies alike whoever trains with it."""

import dataclasses
import types

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from distill_jax.sharding.mesh import make_mesh, padded
from distill_jax.stages.context import Context, RunSettings
from distill_jax.stages.train_job import TrainJob

pytestmark = pytest.mark.unit


def layout(monkeypatch, devices: int, peers: int, of_node: int, together: int, **run: int) -> Mesh:
    """Return the mesh of `together` nodes, of `of_node` members each, of which `peers` may train together."""
    monkeypatch.setattr("distill_jax.sharding.mesh.Mesh", lambda grid, axes, axis_types: Axes(grid, axes))
    nodes = [types.SimpleNamespace(name=f"node-{i}", peers=peers) for i in range(together)]
    members = [types.SimpleNamespace(node=node) for node in nodes for _ in range(of_node)]
    ctx = Context(None, {}, None, None, RunSettings(**run))
    one = types.SimpleNamespace(platform="cpu", id=0)
    return TrainJob.mesh(types.SimpleNamespace(members=members), ctx, [one] * devices)


@dataclasses.dataclass
class Axes:
    """A mesh of devices that are not there."""

    grid: np.ndarray
    names: tuple[str, ...]

    @property
    def shape(self):
        return dict(zip(self.names, self.grid.shape, strict=True))


@pytest.mark.parametrize("devices", [2, 8, 16, 64])
@pytest.mark.parametrize("of_node", [1, 3, 30])
@pytest.mark.parametrize("peers", [1, 2, 5, 8, 20])
def test_devices_compute_members_and_not_padding(monkeypatch, devices, of_node, peers):
    meshes = [layout(monkeypatch, devices, peers, of_node, together) for together in range(1, peers + 1)]
    assert len({tuple(mesh.shape.items()) for mesh in meshes}) == 1  # whoever trains with it
    mesh, members = meshes[0], of_node * peers
    assert np.prod(list(mesh.shape.values())) == devices
    if members < devices:
        assert padded(members, mesh) == members  # devices that are left share a member's batch
    else:
        assert mesh.shape["population"] == devices and padded(members, mesh) < 2 * members


def test_what_divides_weights_lays_out_those_that_train(monkeypatch):
    assert layout(monkeypatch, 16, 5, 1, 2, fsdp=4).shape == {"population": 2, "data": 2, "fsdp": 4, "tensor": 1}


def test_one_device_takes_them_all():
    assert make_mesh(5, devices=jax.devices()[:1]).shape["population"] == 1
