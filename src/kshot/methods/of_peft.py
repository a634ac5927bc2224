"""Methods of PEFT's own that are trained and compared beside ours."""

from __future__ import annotations

from typing import Any

OF_PEFT = {
    "lora": ("LoraConfig", "low-rank weights beside those of the attention's projections (arXiv 2106.09685)"),
    "prompt_tuning": ("PromptTuningConfig", "learnt tokens before the prompt (arXiv 2104.08691)"),
    "prefix_tuning": (
        "PrefixTuningConfig",
        "learnt keys and values before the prompt, in each layer (arXiv 2101.00190)",
    ),
}
"""By name: the configuration's class in PEFT, and what the method is."""


def peft_config(name: str) -> Any:
    """The configuration class of one of them."""
    import peft

    return getattr(peft, OF_PEFT[name][0])
