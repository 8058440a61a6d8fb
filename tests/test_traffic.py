"""HBM traffic by part of the model: a program whose parts are known, and steps of which one part grows."""

import functools

import jax
import pytest

from distill_jax.models.transformer_config import TransformerConfig
from distill_jax.perf import hlo
from distill_jax.perf.traffic import PARTS, part_of_name, traffic_by_part
from distill_jax.stages import Distill
from tests.traced import TINY, traced_step

pytestmark = pytest.mark.unit

# Arrays of 64 fp32 numbers are 256 bytes; S(1) is on-chip memory, which is free.
HLO = """HloModule jit_step, entry_computation_layout={()->f32[]}

%product (p0: f32[64], p1: f32[64]) -> f32[64] {
  %p0 = f32[64]{0} parameter(0)
  %p1 = f32[64]{0} parameter(1)
  %n = f32[16]{0} slice(%p0), slice={[0:16]}, metadata={op_name="jit(f)/layers/pre_mlp_norm/mul"}
  %d = f32[64]{0} multiply(%p0, %p1), metadata={op_name="jit(f)/jvp(objective)/Transformer/layers/mlp/dot_general"}
  ROOT %r = f32[64]{0} negate(%d), metadata={op_name="jit(f)/Transformer/while/body/dynamic_update_slice"}
}

%unnamed (p2: f32[64]) -> f32[64] {
  %p2 = f32[64]{0} parameter(0)
  ROOT %s = f32[64]{0} transpose(%p2), dimensions={0}
}

%body (b: (s32[], f32[64])) -> (s32[], f32[64]) {
  %b = (s32[], f32[64]{0}) parameter(0)
  %x = f32[64]{0} get-tuple-element(%b), index=1
  %a = f32[64]{0} exponential(%x), metadata={op_name="jit(f)/transpose(jvp(objective))/layers/attention/exp"}
  %q = f32[64]{0} negate(%a), metadata={op_name="jit(f)/jvp(objective)/Transformer/layers/attention/query_norm/mul"}
  ROOT %t = (s32[], f32[64]{0}) tuple(%i, %q)
}

%condition (c: (s32[], f32[64])) -> pred[] {
  %c = (s32[], f32[64]{0}) parameter(0)
  %bound = s32[] constant(3)
  %i = s32[] get-tuple-element(%c), index=0
  ROOT %less = pred[] compare(%i, %bound), direction=LT
}

ENTRY %main (x: f32[64], y: f32[64]) -> f32[64] {
  %x = f32[64]{0} parameter(0)
  %y = f32[64]{0} parameter(1)
  %loop = (s32[], f32[64]{0}) while(%init), condition=%condition, body=%body
  %fused = f32[64]{0} fusion(%x, %y), kind=kLoop, calls=%product
  %layout = f32[64]{0} copy(%fused), metadata={op_name="jit(f)/jvp(objective)/Transformer/layers/mlp/dot_general"}
  %moved = f32[64]{0} fusion(%layout), kind=kLoop, calls=%unnamed
  %begin = (f32[64]{0:S(1)}, f32[64]{0}, u32[]{:S(2)}) copy-start(%y)
  %end = f32[64]{0:S(1)} copy-done(%begin)
  %adam = f32[64]{0:S(1)} add(%end, %end), metadata={op_name="jit(f)/vmap(optimizer)/add"}
  %back = (f32[64]{0}, f32[64]{0:S(1)}, u32[]{:S(2)}) copy-start(%adam)
  %loss = f32[64]{0} log(%moved), metadata={op_name="jit(f)/vmap(jvp(objective))/while/body/log"}
  %row = f32[64]{0} gather(%x, %i), metadata={op_name="jit(f)/jvp(objective)/Transformer/Transformer.residual/gather"}
  ROOT %out = f32[64]{0} sine(%loss), metadata={op_name="jit(f)/sin"}
}
"""


def test_each_instruction_is_of_the_part_that_its_name_tells():
    traffic = traffic_by_part(*hlo.parse(HLO))
    assert traffic == {
        "attention": 3 * 512,  # read and written, three turns of the loop
        "mlp": 3 * 256,  # most of what the fusion makes, though its root's name tells nothing
        "norms": 3 * 512,
        "embedding": 512,
        "head": 512,  # the objective's, outside the model
        "optimizer": 2 * 256,  # on the chip, where it computes, and off again
        "copies": 2 * 512,  # whoever needs another layout
        "other": 512 + 3 * (4 + 4 + 1),  # the root, and the counter and its bound
    }
    assert tuple(traffic) == PARTS


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("", ""),
        ("jit(train_step)/vmap(objective)/Transformer/while/body/closed_call/layers/mlp/dot_general", "mlp"),
        ("jit(train_step)/while/body/Transformer/Transformer.residual/gather", "embedding"),
        ("jit(train_step)/vmap(transpose(jvp(objective)))/Transformer/final_norm/mul", "norms"),
        ("jit(train_step)/vmap(transpose(jvp(objective)))/while/body/checkpoint/dot_general", "head"),
        ("jit(train_step)/vmap(transpose(jvp(objective)))/Transformer/while/body/dynamic_slice", ""),
        ("jit(train_step)/optimizer/vmap()/sqrt", "optimizer"),
        ("jit(train_step)/mlpx/attentions/add", ""),
    ],
)
def test_a_path_of_modules_names_a_part(name, part):
    assert part_of_name(name) == part


SMALL = {**TINY, "vocab": 256}


@functools.cache
def distillation(**changed: int) -> dict[str, int]:
    """Return the traffic of a tiny distillation step on one CPU device."""
    cfg = TransformerConfig(**{**SMALL, **changed}, unroll=2)
    compiled = traced_step(cfg, Distill(teacher="t", batch=2), jax.devices()[:1])[2].lower().compile()
    return traffic_by_part(*hlo.parse(compiled.as_text()))


@pytest.mark.parametrize(
    ("changed", "grows"), [("mlp", {"mlp"}), ("vocab", {"head", "embedding"}), ("heads", {"attention"})]
)
def test_a_larger_part_takes_more_and_the_others_as_much(changed, grows):
    """What grows is that part, its weights in the optimizer, and what is done with all weights alike."""
    before = distillation()
    after = distillation(**{changed: 4 * SMALL[changed]})
    assert all(before[name] for name in ("attention", "mlp", "norms", "embedding", "head", "optimizer"))
    more = {name: after[name] - before[name] for name in PARTS if after[name] != before[name]}
    assert set(more) - {"other"} == grows | {"optimizer"} and min(more.values()) > 0
