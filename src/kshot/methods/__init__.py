"""Methods that put demonstrations into an adapter of a few kilobytes: LIVE, MimIC and their rivals, as methods of PEFT.

Importing this package makes PEFT and transformers know them::

    import kshot.methods
    from peft import PeftModel, get_peft_model

    model = get_peft_model(model, kshot.methods.LiveConfig())
    model = PeftModel.from_pretrained(model, "folder/of/an/adapter")
"""

from kshot.methods.registration import Method, MethodType, methods, register_method

methods.names()  # imports the modules that hold the methods, which enter them in PEFT

from kshot.methods.bias import BiasConfig  # noqa: E402 (they need the package to exist)
from kshot.methods.configuration import ShiftConfig  # noqa: E402
from kshot.methods.fit import fit_method  # noqa: E402
from kshot.methods.function_vector import FunctionVectorConfig  # noqa: E402
from kshot.methods.hificl import HificlConfig  # noqa: E402
from kshot.methods.i2cl import I2clConfig  # noqa: E402
from kshot.methods.icv import IcvConfig  # noqa: E402
from kshot.methods.layers import ShiftLayer  # noqa: E402
from kshot.methods.live import LiveConfig  # noqa: E402
from kshot.methods.mimic import MimicConfig  # noqa: E402
from kshot.methods.mtv import MtvConfig  # noqa: E402
from kshot.methods.stave import StaveConfig  # noqa: E402
from kshot.methods.task_vector import TaskVectorConfig  # noqa: E402
from kshot.methods.tuner import ShiftModel  # noqa: E402

__all__ = [
    "BiasConfig",
    "FunctionVectorConfig",
    "HificlConfig",
    "I2clConfig",
    "IcvConfig",
    "LiveConfig",
    "Method",
    "MethodType",
    "MimicConfig",
    "MtvConfig",
    "ShiftConfig",
    "ShiftLayer",
    "ShiftModel",
    "StaveConfig",
    "TaskVectorConfig",
    "fit_method",
    "methods",
    "register_method",
]
