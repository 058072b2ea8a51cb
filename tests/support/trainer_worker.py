"""Trains a tiny model by the Trainer, sharded with FSDP2, in one of several processes. The tests of distributed training start it."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import Trainer, TrainingArguments

import alps
from support.training import TokenDataset, chosen, tiny_model


def main() -> None:
    folder = Path(sys.argv[1])
    model = tiny_model(dtype=torch.float32)
    sharding = {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
        "state_dict_type": "FULL_STATE_DICT",
    }
    arguments = TrainingArguments(
        str(folder / "out"), max_steps=3, per_device_train_batch_size=2, learning_rate=1e-3, report_to=[],
        save_strategy="no", use_cpu=True, fsdp=True, fsdp_config=sharding,  # type: ignore[arg-type]
    )  # fmt: skip
    callback = alps.RestrictCallback(chosen(model), others="freeze")
    trainer = Trainer(model, arguments, train_dataset=TokenDataset(), callbacks=[callback])
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
