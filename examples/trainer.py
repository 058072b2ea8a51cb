"""Trains the heads that another training has moved most, with the Trainer of transformers.

    python examples/trainer.py BASE TUNED text.txt --output out

The base is trained on the text. Of Q, K and V only those heads train whose weights differ most between the two checkpoints. The
result is an ordinary checkpoint; `heads.json` beside it names the heads.
"""

import argparse
from pathlib import Path

from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

import alps


def main() -> None:
    """Trains the model and saves it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", help="the model to train: a path or an id of the hub")
    parser.add_argument("tuned", help="the same model after another training")
    parser.add_argument("text", type=Path, help="a text in UTF-8; a line is a document")
    parser.add_argument("--output", required=True)
    parser.add_argument("--ratio", type=float, default=0.1, help="share of the heads")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(options.base)
    lines = [line for line in options.text.read_text(encoding="utf-8").splitlines() if line]
    data = [{"input_ids": tokenizer(line, truncation=True, max_length=512)["input_ids"]} for line in lines]
    callback = alps.RestrictCallback(base=options.base, tuned=options.tuned, ratio=options.ratio)
    trainer = Trainer(
        AutoModelForCausalLM.from_pretrained(options.base),
        TrainingArguments(
            output_dir=options.output,
            max_steps=options.steps,
            learning_rate=options.learning_rate,
            use_cpu=options.cpu,
            report_to=[],
        ),
        train_dataset=data,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        callbacks=[callback],
    )
    print(callback.restriction)
    trainer.train()
    trainer.save_model()
    tokenizer.save_pretrained(options.output)


if __name__ == "__main__":
    main()
