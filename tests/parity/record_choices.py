"""Record what lm-evaluation-harness says of a small random model on multiple-choice items, for tests/test_choices.py.

    python -m tests.parity.record_choices    # from the repository root; needs the [parity] extra

distill_jax/tiny/choices holds the model as transformers saves it (random weights), its tokenizer and the items;
tests/recordings/choices has expected.json: {case: {"accuracy", "log_likelihoods": each item's}}. The tasks are the
harness's own, `mmlu_…` and `wmdp_bio`, with these items in place of the hub's.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

from distill_jax.shipped import TINY

HERE = TINY / "choices"
EXPECTED = pathlib.Path(__file__).parents[1] / "recordings" / "choices" / "expected.json"
MODEL = HERE / "model"
SUBJECTS = ("us_foreign_policy", "college_biology")
# Case: (subject, the harness's file, solved examples). At three examples some contexts are longer than the model reads.
CASES = {
    "wmdp": ("biology", "wmdp/wmdp_bio.yaml", 0),
    "mmlu-0": ("college_biology", "mmlu/default/mmlu_college_biology.yaml", 0),
    "mmlu-3": ("us_foreign_policy", "mmlu/default/mmlu_us_foreign_policy.yaml", 3),
}
CONFIG = dict(
    model_type="gemma2",
    vocab_size=300,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    query_pre_attn_scalar=11,
    sliding_window=32,
    max_position_embeddings=340,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=1,
)


def items(subject: str, part: str = "") -> list[dict[str, Any]]:
    """Return the written items of a subject; those of the part `_dev` are shown solved. WMDP's name no subject."""
    name = "bio" if subject == "biology" else "mmlu"
    rows = [json.loads(line) for line in (HERE / f"{name}{part}.jsonl").read_text().splitlines()]
    return [row for row in rows if row.get("subject", "biology") == subject]


def save_model() -> None:
    """Write a random model with a byte-level vocabulary, in which some answers have one token and some have two."""
    import tokenizers
    import torch
    import transformers

    text = [json.dumps(row) for subject in (*SUBJECTS, "biology") for row in items(subject)]
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=["<bos>", "<eos>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([*text, *["Answer: A", "Answer: B"] * 60], trainer)
    made.post_processor = tokenizers.processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 0)])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<bos>", eos_token="<eos>")
    fast.save_pretrained(MODEL)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**CONFIG))
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.3 * torch.randn_like(weight)
    model.save_pretrained(MODEL)
    (MODEL / "generation_config.json").unlink(missing_ok=True)


def harness(case: str) -> dict[str, Any]:
    """Return what the harness says today of a case."""
    import lm_eval
    import yaml
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM

    subject, file, shots = CASES[case]
    path = pathlib.Path(lm_eval.__file__).parent / "tasks" / file
    config = yaml.safe_load(path.read_text())
    config = {**yaml.safe_load((path.parent / config.pop("include")).read_text()), **config}
    for key in ("dataset_name", "tag", "task_alias"):
        config.pop(key, None)

    def dataset(**_: Any) -> Any:
        import datasets

        parts = {"test": items(subject), **({"dev": items(subject, "_dev")} if "fewshot_split" in config else {})}
        return {name: datasets.Dataset.from_list(rows) for name, rows in parts.items()}

    task = ConfigurableTask(config={**config, "custom_dataset": dataset})
    model = HFLM(str(MODEL), device="cpu", batch_size=3, dtype="float32")
    found = lm_eval.simple_evaluate(model, tasks=[task], num_fewshot=shots, log_samples=True, bootstrap_iters=0)
    samples = sorted(found["samples"][config["task"]], key=lambda sample: sample["doc_id"])
    said = [[float(reply[0]) for reply in sample["filtered_resps"]] for sample in samples]
    return {"accuracy": found["results"][config["task"]]["acc,none"], "log_likelihoods": said}


def main() -> None:
    """Write the model and the recording anew."""
    save_model()
    expected = {case: harness(case) for case in CASES}
    EXPECTED.write_text(json.dumps(expected, indent=1) + "\n")
    for case, said in expected.items():
        print(f"{case}: accuracy {said['accuracy']:.3f} of {len(said['log_likelihoods'])} items")


if __name__ == "__main__":
    main()
