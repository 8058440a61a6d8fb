"""Score text with a model, then find out what a relearning attack brings back of what it lacks.

    python examples/attack_a_model.py runs/attack                   # a tiny random model that the package ships
    python examples/attack_a_model.py runs/attack path/to/model     # any in the Hugging Face layout, on your own text

The attacker fine-tunes on the text to forget, and is measured on documents of it that it never reads.
"""

import sys

import distill_jax
from distill_jax.data.text.text_config import SAMPLES, TextConfig
from distill_jax.shipped import TINY
from distill_jax.stages import Relearn


def main(workdir: str, model: str = str(TINY / "choices" / "model")) -> dict:
    """Print the likelihood of a text and the end of an attack; return the run's summary."""
    (row,) = distill_jax.score(model, ["The cell divides."])
    print(f"log p = {row['log_likelihood']:.1f} nats of {len(row['tokens'])} tokens")

    data = TextConfig(
        retain=f"{SAMPLES}/sample_english.txt",
        forget=f"{SAMPLES}/sample_korean.txt",
        vocabulary=model,
        row_length=128,
        validation_share=0.2,
        evaluation_bytes=2000,
    )
    attack = Relearn(data="forget", steps=4, batch=4, learning_rates=(1e-2, 1e-3), seeds=1, evaluate_steps=(0, 4))
    run = distill_jax.attack(model, data, workdir, attack)
    print(f"report: {run.compute()}")
    summary = run.summary()
    for one in summary["models"]:
        print(f"{one['name']}: retain {one['retain']:.2f}, forget {one['forget']:.2f} {summary['measure']}")
    return summary


if __name__ == "__main__":
    main(*sys.argv[1:])
