"""Training of the chosen attention heads only.

`restrict` restricts a model in place and leaves an ordinary checkpoint; `AlpsConfig` configures a PEFT adapter, which
loads wherever `alps` is imported. `distill` is a loss for continual learning, which holds the attention of chosen heads.

LoRA on the same projections, the strongest baseline of the paper, needs PEFT alone:
`peft.LoraConfig(r=128, lora_alpha=256, target_modules=["q_proj", "k_proj", "v_proj"], task_type="CAUSAL_LM")`.
"""

from alps.training.distillation import Distillation, distill
from alps.training.peft.config import AlpsConfig
from alps.training.peft.model import register
from alps.training.restrict_callback import RestrictCallback
from alps.training.restriction import release, restrict
from alps.training.summary import Restriction
from alps.training.trainer_callback import HeadsCallback, log_heads

__all__ = [
    "AlpsConfig",
    "Distillation",
    "HeadsCallback",
    "RestrictCallback",
    "Restriction",
    "distill",
    "log_heads",
    "release",
    "restrict",
]

register()
