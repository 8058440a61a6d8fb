"""`model.remat`: what is computed again, and how "auto" is decided."""

import dataclasses
import io
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.experiment import graph, slice_plan
from distill_jax.experiment.lowered_group import LoweredGroup
from distill_jax.io.metrics import Progress
from distill_jax.io.node import EXECUTION
from distill_jax.models import transformer
from distill_jax.models.remat import AUTO
from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf import flops, memory
from distill_jax.perf.analysis_cache import AnalysisCache
from distill_jax.perf.compile_for import ProgramAnalysis
from distill_jax.perf.prices import Prices
from distill_jax.perf.slices import find
from distill_jax.sharding.mesh import make_mesh
from distill_jax.stages import Prepare, Pretrain
from distill_jax.stages.choose_remat import choose_policy, resolve, with_chosen_policy
from distill_jax.stages.compiled_step import compiled_step
from distill_jax.stages.context import Context, Node
from tests.mesh_worker import Data

CFG = TransformerConfig(
    vocab=30, layers=4, hidden=16, mlp=64, heads=2, kv_heads=1, head_dim=8, init_std=0.25, remat="auto"
)
LENGTH = 32
SETTINGS = {"steps": 2, "batch": 8, "warmup": 0}


def of_policy(policy: str) -> TransformerConfig:
    return dataclasses.replace(CFG, remat=policy)


def total(cfg, params, tokens):
    return transformer.hidden_states(cfg, params, tokens, jnp.ones_like(tokens)).sum()


@pytest.mark.property
def test_the_later_a_policy_the_more_is_computed_again():
    params = transformer.shapes(CFG)
    tokens = np.zeros((1, LENGTH), np.int32)

    def executed(policy):
        grad = jax.make_jaxpr(jax.grad(total, argnums=1), static_argnums=0)(of_policy(policy), params, tokens)
        return flops.executed(grad.jaxpr)

    none, products, narrow, full = map(executed, AUTO)
    forward = executed("none") / 3
    mlp = CFG.layers * 2 * LENGTH * 2 * CFG.hidden * CFG.mlp  # of gate and up
    # On a CPU attention is plain: its logits and their product with the values are computed again.
    pairs = CFG.layers * 4 * LENGTH * LENGTH * CFG.heads * CFG.head_dim
    assert none <= products <= none + pairs
    assert narrow == products + mlp
    assert narrow < full <= none + forward * 1.01
    assert executed("auto") == full


@pytest.mark.property
@pytest.mark.parametrize("policy", ["narrow", "full"])
def test_gradients_are_the_same(policy):
    params = transformer.init(CFG, jax.random.key(0))
    tokens = np.random.default_rng(0).integers(0, 30, (2, LENGTH)).astype(np.int32)
    ours, kept = (jax.grad(total, argnums=1)(of_policy(p), params, tokens) for p in (policy, "none"))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(kept), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


def nodes_of(directory: Path, seeds: int = 1) -> list[Node]:
    return [
        Node(f"n-{i}", "pretrain", Pretrain(seed=i, **SETTINGS), {}, "", directory / f"n-{i}", peers=seeds)
        for i in range(seeds)
    ]


def context(nodes: list[Node], cfg: TransformerConfig = CFG) -> Context:
    data = Node("data", "prepare", Prepare(Data(row_length=LENGTH)), {}, "", Path("/nowhere"))
    named = {node.name: node for node in nodes}
    return Context(cfg, named | {"data": data}, Path("/nowhere"), Progress(1, 0.0, out=io.StringIO()))


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A step of one member on one device: its key, its mesh, what it takes, and what each policy needs."""
    nodes = nodes_of(tmp_path_factory.mktemp("nodes"))
    ctx = context(nodes)
    job = nodes[0].settings.train_job(ctx, nodes)
    mesh = make_mesh(1, devices=jax.devices()[:1])
    inputs = job.shapes(ctx, mesh)
    traced = {p: compiled_step(job.key.with_remat(p), mesh).trace(*inputs) for p in AUTO}
    needed = {p: memory.needed_bytes(step.lower().compile()) for p, step in traced.items()}
    stacked = {p: memory.stacked_bytes(step.jaxpr.jaxpr, 1) for p, step in traced.items()}
    return job.key, mesh, inputs, needed, stacked


@pytest.mark.property
def test_the_first_policy_that_fits_is_chosen(job):
    key, mesh, inputs, needed, _ = job
    assert needed["none"] > needed["products"] > needed["narrow"] > needed["full"]
    for policy in AUTO:
        choice = resolve(key, mesh, inputs, needed[policy])
        assert (choice.policy, choice.fits, choice.needed) == (policy, True, needed[policy])
    choice = resolve(key, mesh, inputs, needed["full"] - 1)
    assert (choice.policy, choice.fits) == ("full", False)


@pytest.mark.property
def test_a_policy_that_is_named_is_kept(job):
    key, mesh, inputs, needed, _ = job
    choice = resolve(key.with_remat("narrow"), mesh, inputs, needed["none"])
    assert (choice.policy, choice.fits) == ("narrow", True)
    assert not resolve(key.with_remat("narrow"), mesh, inputs, needed["full"]).fits


@pytest.mark.property
def test_what_cannot_fit_is_not_compiled(job, monkeypatch):
    """What the loops' turns leave is a lower bound that tells policies apart."""
    key, mesh, inputs, needed, stacked = job
    least = {p: memory.least_bytes(*inputs, stacked=stacked[p]) for p in AUTO}
    assert all(least[p] <= needed[p] for p in AUTO)
    assert stacked["none"] > stacked["products"] > stacked["narrow"] > stacked["full"] > 0
    compiled = []
    monkeypatch.setattr(memory, "needed_bytes", lambda program: compiled.append(program) or 0)
    between = (least["products"] + least["narrow"]) / 2
    assert resolve(key, mesh, inputs, between).policy == "narrow"
    assert len(compiled) == 1


@pytest.mark.unit
def test_what_two_forward_passes_leave_is_there_together():
    """Two stacks of 8 layers' results; if the first pass has gone back before the second begins, only one."""

    def layers(x, w):
        return jax.lax.scan(lambda x, w: (jnp.sin(x) * w, None), x, w)[0].sum()

    def at_once(x, y, w):
        return jax.grad(lambda w: layers(x, w) + layers(y, w))(w)

    def in_turn(x, y, w):
        first = jax.grad(layers, argnums=1)(x, w)
        return first + jax.grad(layers, argnums=1)(y, w)

    x, w = jnp.ones(1000), jnp.ones((8, 1000))
    stack, gradient = 8 * 1000 * 4, 8 * 1000 * 4

    def stacked(program, devices):
        return memory.stacked_bytes(jax.make_jaxpr(program)(x, x, w).jaxpr, devices)

    alone = memory.stacked_bytes(jax.make_jaxpr(jax.grad(layers, argnums=1))(x, w).jaxpr, 1)
    kept = alone - gradient  # what the backward pass reads of one forward pass, a multiple of a layer's results
    assert kept >= stack and kept % stack == 0
    assert stacked(at_once, 1) == 2 * kept + gradient and stacked(at_once, 4) == (2 * kept + gradient) / 4
    assert stacked(in_turn, 1) == kept + 2 * gradient


@pytest.mark.property
def test_a_population_is_halved_only_when_full_does_not_fit_either(tmp_path, monkeypatch):
    nodes = nodes_of(tmp_path, seeds=2)

    def fitting(capacity):
        monkeypatch.setattr(memory, "capacity", lambda device: capacity)
        return graph.fitting(context(nodes), nodes)

    def needed(policy):
        ctx = context(nodes, of_policy(policy))
        job = nodes[0].settings.train_job(ctx, nodes)
        mesh = job.mesh(ctx)
        shapes = job.shapes(ctx, mesh)
        saving = memory.saving_bytes(shapes[0], len(nodes), "cpu")
        return saving + memory.needed_bytes(job.build(mesh).trace(*shapes).lower().compile())

    both = (needed("none") + needed("full")) / 2 / memory.FILL  # of the two policies one fits
    assert fitting(both) == 2
    assert fitting(needed("full")) == 1


@pytest.mark.property
def test_what_was_chosen_is_recorded_and_kept_by_a_run_that_continues(tmp_path, monkeypatch, job):
    nodes = nodes_of(tmp_path)
    nodes[0].directory.mkdir()
    mesh, needed = job[1], job[3]

    def chosen(capacity):
        monkeypatch.setattr(memory, "capacity", lambda device: capacity)
        ctx = context(nodes)
        key = with_chosen_policy(ctx, nodes[0].settings.train_job(ctx, nodes), mesh).key
        return key.model.remat, ctx.progress.out.getvalue()

    policy, line = chosen(needed["products"] / memory.FILL)
    assert policy == "products" and '"products"' in line
    assert json.loads((nodes[0].directory / EXECUTION).read_text()) == {"remat": "products"}
    assert chosen(10**12)[0] == "products"
    (nodes[0].directory / EXECUTION).unlink()
    assert chosen(10**12)[0] == "none"
    assert choose_policy(context(nodes), nodes[0].settings.train_job(context(nodes), nodes), mesh).policy == "none"


@pytest.mark.unit
def test_a_plan_tries_the_policies_in_order_and_compiles_none_that_cannot_fit(tmp_path, monkeypatch):
    where, nodes, lines = find("v5e-4"), nodes_of(tmp_path, seeds=2), []
    # Of what each policy needs of a chip: (at least, as shapes tell; as the compiler tells), for each member.
    sizes = {"none": (1.2, 9.0), "products": (0.4, 0.8), "narrow": (0.4, 0.5), "full": (0.1, 0.3)}
    ctx = context(nodes)
    mesh = make_mesh(1, devices=jax.devices()[:1])

    def lower(ctx, devices):
        def lowered(group):
            for policy, (least, needed) in sizes.items():
                least_bytes = len(group) * least * where.chip.hbm
                size = len(group) * needed
                yield LoweredGroup(None, group, len(group), 1.0, 1.0, policy, least_bytes, mesh, size, ())

        return lowered

    def compile_for(size, mesh):
        del mesh
        return ProgramAnalysis(dict.fromkeys(("outputs", "aliased"), 1), int(size * where.chip.hbm))

    monkeypatch.setattr(slice_plan, "topology", lambda where: jax.devices())
    monkeypatch.setattr(slice_plan, "Lowering", lower)
    monkeypatch.setattr(slice_plan, "compile_for", compile_for)
    monkeypatch.setattr(slice_plan, "program_key", lambda size, where: str(size))
    planner = slice_plan.SlicePlanner(ctx, Prices("EUR", "today", {}), AnalysisCache(None), lines.append)
    # Both together fit with "full" alone; a member alone would fit with "products".
    assert [stage.remat for stage in planner.on_slice([nodes], where)] == ["full", "full"]
    lines = [line for line in lines if ": compiling" not in line]
    assert [line.split(", remat = ")[1].split(":")[0] for line in lines] == ["none", "products", "narrow", "full"]
    assert "not compiled" in lines[0] and "too large together" in lines[2]
    sizes["full"] = (0.1, 0.6)  # then they are divided
    assert [stage.remat for stage in planner.on_slice([nodes], where)] == ["products", "products"]


@pytest.mark.unit
def test_arrays_need_what_their_shapes_need(job):
    """A benchmark asks with what it has already made."""
    _, _, inputs, _, _ = job

    def zeros(x):
        return jnp.zeros(x.shape, x.dtype, device=x.sharding)

    assert memory.least_bytes(*jax.tree.map(zeros, inputs)) == memory.least_bytes(*inputs) > 0
