"""Fine-tunes a causal language model on the chosen heads only, with the settings of the paper.

    alps scan BASE TUNED --scores scores.safetensors
    alps select scores.safetensors --ratio 0.1 --statistic wasserstein --heads heads.json
    python examples/finetune.py BASE heads.json tatsu-lab/alpaca --output tuned

The dataset has columns `instruction`, `input` and `output`, as Alpaca has, or a column `text`. The result
is an ordinary checkpoint, or with --adapter one of PEFT.
"""

import argparse
import os
from pathlib import Path

import torch
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import alps

WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)


def load_data(name: str) -> Dataset:
    """Loads a dataset of the hub by its id, or a file of JSON lines or of text by its path."""
    if not Path(name).is_file():
        return load_dataset(name, split="train")
    kind = "json" if Path(name).suffix in (".json", ".jsonl") else "text"
    return load_dataset(kind, data_files=name, split="train")


def to_prompt(row: dict[str, str]) -> dict[str, str]:
    """Converts a row of Alpaca to a prompt and the completion to learn."""
    template = WITH_INPUT if row.get("input") else WITHOUT_INPUT
    return {"prompt": template.format(**row), "completion": row["output"]}


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a path or an id of the hub")
    parser.add_argument("heads", help="a file that `alps select` wrote")
    parser.add_argument("dataset", help="a path or an id of the hub")
    parser.add_argument("--output", required=True)
    parser.add_argument("--others", choices=["train", "freeze"], default="train", help="all but Q, K and V")
    parser.add_argument("--adapter", action="store_true", help="train an adapter of PEFT instead")
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--batch", type=int, default=128, help="rows for each step, on all devices")
    parser.add_argument("--device-batch", type=int, default=8, help="rows that a device takes at once")
    parser.add_argument("--length", type=int, default=512, help="tokens at which a row is cut")
    parser.add_argument("--steps", type=int, default=-1, help="stop after so many")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument(
        "--report-to", nargs="*", default=[], metavar="SERVICE",
        help="where the losses go: any names that transformers knows, such as tensorboard or wandb, or all",
    )  # fmt: skip
    parser.add_argument("--log-every", type=int, default=10, metavar="STEPS", help="steps between two losses")
    parser.add_argument("--cpu", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Trains the model and saves it."""
    options = parse_arguments()
    heads = alps.HeadSet.load(options.heads)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
    dataset = load_data(options.dataset)
    if "instruction" in dataset.column_names:
        dataset = dataset.map(to_prompt, remove_columns=dataset.column_names)

    adapter = alps.AlpsConfig(heads=heads, task_type="CAUSAL_LM") if options.adapter else None
    if adapter is None:
        print(alps.restrict(model, heads, others=options.others))

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    device_batch = min(options.device_batch, max(1, options.batch // processes))
    settings = SFTConfig(
        output_dir=options.output,
        learning_rate=options.learning_rate,
        adam_beta1=0.9,
        adam_beta2=0.999,
        weight_decay=0.1,
        warmup_steps=0.1,  # a share of all steps
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        num_train_epochs=options.epochs,
        max_steps=options.steps,
        per_device_train_batch_size=device_batch,
        gradient_accumulation_steps=max(1, options.batch // (device_batch * processes)),
        max_length=options.length,
        gradient_checkpointing=False,
        bf16=options.dtype == "bfloat16",
        use_cpu=options.cpu,
        report_to=options.report_to,
        logging_steps=options.log_every,
    )
    trainer = SFTTrainer(
        model,
        args=settings,
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(options.model),
        peft_config=adapter,
    )
    trainer.train()
    trainer.save_model(options.output)


if __name__ == "__main__":
    main()
