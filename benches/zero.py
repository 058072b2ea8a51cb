"""Whether training under DeepSpeed's ZeRO moves the chosen rows and nothing else, on two processes of a CPU.

    pip install deepspeed ninja
    DS_ACCELERATOR=cpu torchrun --nproc-per-node=2 benches/zero.py STAGE WAY

STAGE is 1, 2 or 3. WAY is "train" or "freeze" (what `alps.restrict` does with all else) or "adapter". Stage 3 refuses
the first two. The model is a small Llama with random weights.
"""

import sys
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from peft import get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

import alps
from alps.training import attention

SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 128,
}  # fmt: skip
PROJECTIONS = ("q_proj.weight", "k_proj.weight", "v_proj.weight")


def main(stage: int, way: str) -> None:
    """Trains six steps and prints how many frozen and chosen entries of Q, K and V moved."""
    deepspeed.init_distributed("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES))
    before = {name: it.clone() for name, it in model.state_dict().items() if name.endswith(PROJECTIONS)}
    heads = alps.HeadSet.from_pairs([(0, 1), (1, 2)], attention.find(model).geometry)
    if way == "adapter":
        model = get_peft_model(model, alps.AlpsConfig(heads=heads))
    else:
        alps.restrict(model, heads, others=way)  # type: ignore[arg-type]
    rows = [it for name, it in model.named_parameters() if it.requires_grad and "rows" in name]
    chosen = sum(it.numel() for it in rows)
    optimizer = torch.optim.AdamW([it for it in model.parameters() if it.requires_grad], lr=1e-3)
    settings = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(6):
        tokens = torch.randint(0, SIZES["vocab_size"], (2, 16), generator=generator)
        engine.backward(engine(input_ids=tokens, labels=tokens).loss)
        engine.step()
    state = engine._zero3_consolidated_16bit_state_dict() if stage == 3 else engine.module.state_dict()
    if rank == 0:
        names = {name: name.removeprefix("base_model.model.").replace(".base_layer.", ".") for name in state}
        moved = sum(
            int((it != before[names[name]]).sum()) for name, it in state.items() if names[name] in before
        )
        expected = "none, since the adapter holds the rows" if way == "adapter" else f"at most {chosen:,}"
        print(f"stage {stage}, {way}: {moved:,} entries of Q, K and V moved; expected {expected}")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
