"""Relearn: the attack. Fine-tune on half of the forget facts and watch what comes back.

The attacker trains on the *shown* facts with every learning rate and seed at once, one population in one program.
Accuracy on the shown facts mixes "the ability came back" with "it was taught again"; accuracy on the *held-out* facts
is only what was never removed. The worst case takes, at each step and for each seed, the best learning rate.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import ClassVar

from distill_jax.config import SettingError
from distill_jax.perf import flops
from distill_jax.perf.ledger import ledger
from distill_jax.stages.compiled_step import Objective
from distill_jax.stages.context import PARTS, Context, Node
from distill_jax.stages.next_token import NextToken
from distill_jax.stages.stage import stage_input
from distill_jax.stages.train_job import Member, TrainJob
from distill_jax.stages.train_stage import AdaptingStage
from distill_jax.stages.training import EvaluationPlan, train
from distill_jax.statistics.attack_rows import Attacker, AttackRow, attack_rows, attackers
from distill_jax.train.state import DIVERGED

MOST_SEEDS = 1000  # each trains beside the others


@dataclasses.dataclass(frozen=True)
class Relearn(AdaptingStage):
    """Attack a model by fine-tuning all its weights, or adapters to them.

    Attributes:
      start: the node under attack.
      data: what the attacker trains on.
      learning_rates: the attacker tries all of them and keeps, step by step, the one that does best.
      seeds: how many attackers; each reads the data in an order of its own.
      evaluate_steps: attack steps at which accuracy is measured; 0 is before the attack.
    """

    start: str = stage_input()
    data: str = "forget_shown"
    learning_rates: tuple[float, ...] = (1e-3, 7e-4, 4e-4, 1e-4, 7e-5, 5e-5, 1e-5, 7e-6, 4e-6, 1e-6)
    seeds: int = 3
    evaluate_steps: tuple[int, ...] = (0, 5, 10, 20, 50, 100, 200, 500)

    kind: ClassVar[str] = "relearn"
    leaves_model: ClassVar[bool] = False

    def objective(self) -> Objective:
        """Return the next token's cross-entropy."""
        return NextToken(self.loss_on)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.learning_rates or min(self.learning_rates) <= 0:
            raise SettingError("learning_rates", self.learning_rates, "give at least one, all positive")
        if len({one.label for one in attackers(self.learning_rates, 1)}) < len(self.learning_rates):
            raise SettingError("learning_rates", self.learning_rates, "give each once; six digits tell them apart")
        if not 1 <= self.seeds <= MOST_SEEDS:
            raise SettingError("seeds", self.seeds, f"must be from 1 to {MOST_SEEDS}")
        outside = [s for s in self.evaluate_steps if not 0 <= s <= self.steps]
        if outside or not self.evaluate_steps:
            raise SettingError("evaluate_steps", self.evaluate_steps, f"give steps from 0 to steps = {self.steps}")
        if 0 not in self.evaluate_steps:  # else what came back by the first of them would count as never gone
            raise SettingError("evaluate_steps", self.evaluate_steps, "must have 0, the model before the attack")

    def estimate_flops(self, ctx: Context) -> float:
        """Return the FLOPs of the whole attack."""
        evaluations = len(self.evaluate_steps) * ctx.evaluation_flops(*PARTS)
        return len(self.learning_rates) * self.seeds * (self.steps * sum(self.step_flops(ctx).values()) + evaluations)

    def reads(self) -> str:
        """Return the data set that the attacker trains on."""
        return self.data

    def step_flops(self, ctx: Context) -> dict[str, float]:
        """Return the FLOPs of a step of one attacker."""
        return {"attack": flops.train_step(ctx.model, self.batch, ctx.row_length, lora_rank=self.lora_rank)}

    def attackers(self) -> list[Attacker]:
        """Return the members: every learning rate with every seed."""
        return attackers(self.learning_rates, self.seeds)

    def train_job(self, ctx: Context, nodes: Sequence[Node]) -> TrainJob:
        """Return what one attack runs: every learning rate with every seed as one population."""
        (node,) = nodes
        members = [Member(node, one.label, one.learning_rate, one.seed) for one in self.attackers()]
        job = super().train_job(ctx, nodes)
        seeds, reads = [self.seed + i for i in range(self.seeds)], ctx.data_config.set_name(self.data)
        return dataclasses.replace(job, members=members, seeds=seeds, reads=reads)

    def evaluates_at(self, step: int) -> bool:
        """Return whether it is evaluated at a step."""
        return step in self.evaluate_steps

    def run(self, ctx: Context, nodes: Sequence[Node]) -> None:
        """Attack one node's model."""
        (node,), job = nodes, self.train_job(ctx, nodes)
        plan = EvaluationPlan(self.evaluates_at, by_fact=True)
        outcome = train(ctx, job, functools.partial(self.starts, ctx, nodes), plan, self.estimate_flops(ctx))
        spent, tokens = job.spent(ctx, sum(outcome.steps), sum(outcome.evaluations), PARTS)
        ends = zip(job.members, outcome.steps, outcome.status, strict=True)
        diverged = {member.label: step for member, step, status in ends if status == DIVERGED}
        result = {"members": len(job.members), "diverged": len(diverged), "diverged_at": diverged}
        result |= {"prompts_by_fact": ctx.measure.prompts_by_fact(PARTS)}
        if ctx.data_config.RETAIN_BY_ITEM:
            result |= {"prompts_by_kept_fact": ctx.measure.prompts_by_fact(PARTS, "retain")}
        node.finish(result, ledger(spent, tokens, ctx.clock.lap(), devices=outcome.mesh.size))


def read_attack_rows(node: Node) -> list[AttackRow]:
    """Return what the attackers of a finished node measured."""
    stage: Relearn = node.settings
    return attack_rows(node.rows(), stage.attackers())
