"""Training of the chosen attention heads only.

`restrict` restricts a model in place and leaves an ordinary checkpoint; `AlpsConfig` configures a PEFT adapter.
Importing this package, or either name from `alps`, registers the adapter with PEFT: import it before loading one.

LoRA on the same projections, the strongest baseline of the paper, needs PEFT alone:
`peft.LoraConfig(r=128, lora_alpha=256, target_modules=["q_proj", "k_proj", "v_proj"], task_type="CAUSAL_LM")`.
"""

from alps.training.peft.config import AlpsConfig
from alps.training.peft.model import register
from alps.training.restriction import release, restrict
from alps.training.summary import Restriction

__all__ = ["AlpsConfig", "Restriction", "release", "restrict"]

register()
