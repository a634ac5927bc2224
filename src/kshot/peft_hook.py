"""PEFT learns of kshot's methods once both packages are imported, in either order.

PEFT has no entry points: a method exists for it once a module has entered it there. So that adapters load in any program which
imports kshot (``PeftModel.from_pretrained``, ``model.load_adapter``), the import of PEFT is followed by that of ``kshot.methods``.
``import kshot`` stays light, and programs without PEFT see nothing of this.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

METHODS = "kshot.methods"


class AfterPeft(importlib.abc.MetaPathFinder):
    """Finds PEFT as it would be found without this, and adds the import of the methods to its loading."""

    def __init__(self) -> None:
        self._asking = False

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """See :class:`importlib.abc.MetaPathFinder`. It is also called by programs that only ask whether there is a PEFT."""
        if name != "peft" or self._asking:
            return None
        self._asking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._asking = False
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            load = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                load(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                importlib.import_module(METHODS)

            loader.exec_module = exec_module
        return spec


def install() -> None:
    """See the module."""
    if "peft" not in sys.modules:
        sys.meta_path.insert(0, AfterPeft())
    elif not getattr(sys.modules["peft"].__spec__, "_initializing", False):
        importlib.import_module(METHODS)
