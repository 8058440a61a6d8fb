"""The program's commands, one a file, each with `Flags`, `usage(arguments)`, and `main(arguments)`: an exit code."""

from __future__ import annotations

COMMANDS = {
    "protect": "make a model of yours forget, attack what comes out, and say on one card what came back",
    "attack": "attack models that somebody unlearned, alike, and say what came back",
    "run": "compute what is missing of an experiment, then draw its report",
    "audit": "run an experiment on teachers that are to be judged: its report ends in a verdict",
    "prepare": "make the experiment's data only",
    "data": "show what a model will see of them: decoded rows, shares, counts",
    "status": "what a run or sweep has done, does, waits for and failed at, and how long is left",
    "report": "draw the report again from a work directory",
    "sweep": "compute many points over one config, alone or beside other workers",
    "plan": "compile an experiment for a TPU slice, without one, and print memory, time and cost of every stage",
    "bench": "measure speed and memory on synthetic data",
    "import": "make a published model, of the Hugging Face layout or GGUF, one that stages can start from",
    "export": "write a model as transformers loads it",
    "score": "log-likelihoods of texts or tokens, or which answers a model gives to multiple choice",
    "generate": "write what a model says after given texts or tokens",
}
_MODULES = {"import": "import_hf", "prepare": "prepare_data"}  # a keyword; and a stage's file has that name


def module_name(command: str) -> str:
    """Return the module of a command."""
    return f"distill_jax.commands.{_MODULES.get(command, command)}"
