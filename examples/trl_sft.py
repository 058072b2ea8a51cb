"""Does what `trl sft` does, for the chosen heads only. It takes the options of `trl sft`, and two more.

    python examples/trl_sft.py --heads heads.json --model_name_or_path BASE --dataset_name DATA --output_dir tuned

The result is an ordinary checkpoint. `accelerate launch examples/trl_sft.py` runs it on several devices.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from datasets import load_dataset
from trl import ModelConfig, ScriptArguments, SFTConfig, SFTTrainer, TrlParser, get_peft_config

import alps


@dataclass
class HeadArguments:
    """Which heads train, and what else."""

    heads: str = field(metadata={"help": "A file with a head set, or a repository on the hub that has one."})
    others: Literal["train", "freeze"] = field(
        default="train", metadata={"help": "What the parameters outside Q, K and V do."}
    )


def main() -> None:
    """Trains the model and saves it."""
    kinds: Any = [ScriptArguments, SFTConfig, ModelConfig, HeadArguments]
    parser = TrlParser(kinds)
    script, training, model, chosen = parser.parse_args_and_config()
    training.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(training.model_init_kwargs or {}),
    }
    dataset = load_dataset(script.dataset_name, name=script.dataset_config)
    trainer = SFTTrainer(
        model.model_name_or_path,
        args=training,
        train_dataset=dataset[script.dataset_train_split],
        eval_dataset=dataset[script.dataset_test_split] if training.eval_strategy != "no" else None,
        peft_config=get_peft_config(model),  # an adapter is refused
        callbacks=[alps.RestrictCallback(chosen.heads, others=chosen.others)],
    )
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    trainer.save_model(training.output_dir)


if __name__ == "__main__":
    main()
