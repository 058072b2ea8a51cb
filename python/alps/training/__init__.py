"""Training only the chosen attention heads.

`restrict` does it in place and leaves an ordinary checkpoint; `AlpsConfig` does it as an adapter of PEFT. To
import this package, or to take either from `alps`, makes the adapters known to PEFT: do so before
you load one.

LoRA on the same projections, the paper's strongest baseline, needs nothing from here:

    config = peft.LoraConfig(
        r=128, lora_alpha=256, target_modules=["q_proj", "k_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(model, config)
"""

from alps.training.adapter_config import AlpsConfig
from alps.training.adapter_model import register
from alps.training.report import Restriction
from alps.training.restriction import release, restrict

__all__ = ["AlpsConfig", "Restriction", "release", "restrict"]

register()
