"""The same steps in PyTorch: transformers' own decoder, AdamW, one process. Imports nothing of this package.

    PYTHON torch_step.py '{"model": …, "workload": …, …}'

Says {"ready": …} once it is built, then answers every line N on its input with the seconds of N steps.
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from torch import Tensor
    from transformers import PreTrainedModel


class ModelSpec(TypedDict):
    """What is read of our model's config."""

    vocab: int
    init_std: float
    final_softcap: float
    dtype: str
    remat: str


class Spec(TypedDict):
    """What is asked for; `config` is that of transformers."""

    model: ModelSpec
    config: dict[str, object]
    workload: str
    batch: int
    length: int
    chunk: int
    device: str
    threads: int
    compile: bool
    attention: str


def decoder(torch: ModuleType, transformers: ModuleType, spec: Spec) -> PreTrainedModel:
    """Build a fresh decoder of our shape, where it will be: a host draws billions of numbers for a minute."""
    given = {"initializer_range": spec["model"]["init_std"], "use_cache": False}
    config = transformers.AutoConfig.for_model(**spec["config"] | given)
    with torch.device(spec["device"]):
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=spec["attention"])
    return model.float().train()


def build(torch: ModuleType, transformers: ModuleType, spec: Spec) -> tuple[Callable[[], Tensor], int]:
    """Return step() -> loss, and the number of parameters."""
    import numpy as np
    from torch.nn.functional import cross_entropy, kl_div, log_softmax
    from torch.utils.checkpoint import checkpoint

    model, device = spec["model"], spec["device"]
    torch.manual_seed(0)
    student, teacher = decoder(torch, transformers, spec), None
    if spec["workload"] != "pretrain":
        teacher = decoder(torch, transformers, spec).eval()
        if model["dtype"] == "bfloat16":
            teacher = teacher.bfloat16()  # frozen: fp32 would only be cast at each use
    if model["remat"] != "none":
        student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    drawn = np.random.RandomState(0).randint(0, model["vocab"], (1, spec["batch"], spec["length"]))
    tokens = torch.from_numpy(drawn[0]).to(device)
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True
    )
    bf16 = model["dtype"] == "bfloat16"
    cap, count = model["final_softcap"], spec["batch"] * (spec["length"] - 1)

    def logits(net: PreTrainedModel, hidden: Tensor) -> Tensor:
        out = (hidden @ net.model.embed_tokens.weight.to(hidden.dtype).T).float()
        return cap * torch.tanh(out / cap) if cap else out

    def of_chunk(hidden: Tensor, target: Tensor) -> Tensor:
        if teacher is None:
            return cross_entropy(logits(student, hidden), target, reduction="sum")
        with torch.no_grad():
            wanted = log_softmax(logits(teacher, target), dim=-1)
        return kl_div(log_softmax(logits(student, hidden), dim=-1), wanted, reduction="sum", log_target=True)

    def forward(net: PreTrainedModel) -> Tensor:
        return net.model(tokens).last_hidden_state[:, :-1].flatten(0, 1)

    def compute() -> Tensor:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
            if teacher is None:
                target = tokens[:, 1:].flatten()
            elif kept is not None:
                target = kept
            else:
                with torch.no_grad():
                    target = forward(teacher)
            hidden, size = forward(student), spec["chunk"] or count
            pieces = zip(hidden.split(size), target.split(size), strict=True)
            if not spec["chunk"]:
                return of_chunk(hidden, target) / count
            return sum(checkpoint(of_chunk, h, t, use_reentrant=False) for h, t in pieces) / count

    kept = None
    if spec["workload"] == "cached":
        with torch.no_grad(), torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
            kept = forward(teacher)
    if spec["compile"]:
        # By layers: all 52 of two models in one graph took an H200's host more than 100 s.
        of_chunk = torch.compile(of_chunk)
        for net in filter(None, (student, teacher)):
            for layer in net.model.layers:
                layer.compile()

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = compute()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    return step, sum(p.numel() for p in student.parameters())


def main() -> None:
    """Build, then take the steps that are asked for."""
    try:
        import torch
        import transformers
    except ImportError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return
    spec: Spec = json.loads(sys.argv[1])
    if spec["threads"]:
        torch.set_num_threads(spec["threads"])
    cuda = spec["device"] == "cuda"
    if cuda and not torch.cuda.is_available():
        print(json.dumps({"error": "torch sees no CUDA device"}), flush=True)
        return
    torch.set_float32_matmul_precision("high")
    try:
        step, parameters = build(torch, transformers, spec)
        began = time.perf_counter()
        loss: float | Tensor = float(step())
    except torch.OutOfMemoryError as error:
        print(json.dumps({"error": f"out of memory: {str(error)[:120]}"}), flush=True)
        return
    print(
        json.dumps(
            {
                "ready": True,
                "parameters": parameters,
                "first_step_seconds": time.perf_counter() - began,
                "first_loss": loss,
                "threads": torch.get_num_threads(),
                "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            }
        ),
        flush=True,
    )
    for line in sys.stdin:
        began, busy = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            loss = step()
        loss = float(loss)  # waits for the device
        if cuda:
            torch.cuda.synchronize()
        seconds, busy = time.perf_counter() - began, time.process_time() - busy
        peak = torch.cuda.max_memory_allocated() if cuda else None
        print(json.dumps({"seconds": seconds, "cpu_seconds": busy, "loss": loss, "peak_bytes": peak}), flush=True)


if __name__ == "__main__":
    main()
