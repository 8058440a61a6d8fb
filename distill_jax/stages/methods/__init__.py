"""Unlearning methods by name: one file each, and its line here."""

from distill_jax.stages.methods.dpo import DPO
from distill_jax.stages.methods.gradascent import GradAscent
from distill_jax.stages.methods.graddiff import GradDiff
from distill_jax.stages.methods.maxent import MaxEnt
from distill_jax.stages.methods.method import UnlearningMethod
from distill_jax.stages.methods.npo import NPO
from distill_jax.stages.methods.rmu import RMU
from distill_jax.stages.methods.selective import Selective
from distill_jax.stages.methods.simnpo import SimNPO
from distill_jax.stages.methods.undial import UNDIAL
from distill_jax.stages.methods.wga import WGA

METHODS: dict[str, type[UnlearningMethod]] = {
    method.name: method for method in (MaxEnt, GradDiff, RMU, GradAscent, WGA, NPO, SimNPO, UNDIAL, DPO, Selective)
}
