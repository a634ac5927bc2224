"""In what precision a network computes, whatever the process has set for itself.

PyTorch lets cuDNN compute float32 convolutions in TF32 (10 bits of mantissa) on GPUs since Ampere unless told otherwise. Tokens
made so differ from true float32 ones in a few codes, so a store of tokens has to name its precision, and the name has to hold
in every process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch

from kshot.errors import OptionError

Precision = Literal["float32", "tf32", "bfloat16"]


def checked_precision(precision: str) -> Precision:
    """A precision by its name.

    Raises:
        OptionError: there is no such precision.
    """
    for known in get_args(Precision):
        if precision == known:
            return known
    raise OptionError(f"unknown precision {precision!r}: use {', '.join(get_args(Precision))}")


@contextlib.contextmanager
def computing_in(precision: Precision) -> Iterator[None]:
    """Set what convolutions and matrix products of float32 do, and set it back afterwards.

    ``tf32`` is what upstream's programs compute in on such a GPU: convolutions in TF32, matrix products (so the search of the
    codebook) in float32. Elsewhere it is float32. Under ``bfloat16`` the caller casts; what stays float32 is true float32.
    """
    backends = torch.backends
    wanted: list[tuple[Any, str]] = [(backends.cudnn.conv, "tf32" if precision == "tf32" else "ieee")]  # type: ignore[attr-defined]
    wanted += [(place, "ieee") for place in (backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.matmul)]  # type: ignore[attr-defined]
    before: list[tuple[Any, str]] = []
    try:
        for place, value in wanted:
            now = place.fp32_precision
            if now != value and not (now == "none" and value == "ieee"):
                before.append((place, now))
                place.fp32_precision = value
        yield
    finally:
        for place, value in before:
            place.fp32_precision = value
