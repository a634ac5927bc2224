"""Where teacher and student say the same: the span of query and answer at the end of both prompts, and hidden states there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from kshot.errors import ModelError, OptionError
from kshot.methods.places import mlp_of, own_attention
from kshot.models.anatomy import Anatomy
from kshot.models.encoding import EncodedPrompt
from kshot.prompt import TokenizedPrompt

AlignTo = Literal["mlp", "attention", "layer"]
SLACK = 4
"""Tokens at the border of two turns that may be written otherwise at the beginning of a prompt."""


@dataclass(frozen=True)
class Row:
    """A prompt with its answer, and where it ends in what is compared.

    Attributes:
        prompt: the prompt.
        answer: for the last tokens, from the answer's first on, whether they belong to the answer.
        span: number of tokens at the end whose hidden states are compared: query and answer.
    """

    prompt: EncodedPrompt
    answer: tuple[bool, ...]
    span: int

    @classmethod
    def of(cls, prompt: EncodedPrompt) -> Row:
        """The row of a prompt that ends in an answer."""
        mask = prompt.tokens.answer_mask()
        if True not in mask:
            raise ModelError("a prompt without an answer cannot be learnt")
        return cls(prompt, tuple(mask[mask.index(True) :]), query_span(prompt.tokens))

    @property
    def targets(self) -> tuple[int, ...]:
        """Ids of the answer's tokens."""
        last = self.prompt.tokens.ids[-len(self.answer) :]
        return tuple(token for token, wanted in zip(last, self.answer, strict=True) if wanted)


def query_span(tokens: TokenizedPrompt) -> int:
    """Number of tokens from the query's first to the end."""
    found = tokens.span("query") or tokens.span("answer")
    return len(tokens) - found[0] if found else 0


def common_span(student: TokenizedPrompt, teacher: TokenizedPrompt, name: str = "the episode") -> int:
    """Number of tokens at the end of both prompts that are query and answer, and the same.

    Raises:
        ModelError: the model writes the query otherwise behind demonstrations than alone, so that positions cannot be compared.
    """
    limit = min(query_span(student), query_span(teacher))
    same = 0
    for one, other in zip(reversed(student.ids), reversed(teacher.ids), strict=False):
        if one != other or same == limit:
            break
        same += 1
    answer = student.answer_mask()
    needed = max(limit - SLACK, len(answer) - answer.index(True) if True in answer else 0)
    if same < needed:
        raise ModelError(
            f"query and answer of {name} are {limit} tokens, but with demonstrations only the last {same} of them are the same: this "
            "model's prompts write a query alone and one of several otherwise, so that teacher and student cannot be aligned"
        )
    return same


class Watch:
    """Reads the outputs of parts of the decoder's layers.

    Args:
        anatomy: of the model.
        what: outputs of the ``mlp``, of the self-``attention``, or of the whole ``layer``.
        layers: numbers of the layers; default: all that have such a part.

    Raises:
        OptionError: no such part or layer.
        ModelError: a layer is built in another way.
    """

    def __init__(self, anatomy: Anatomy, what: AlignTo = "mlp", layers: Sequence[int] | None = None):
        count = len(anatomy.layers)
        wrong = [number for number in layers or () if not -count <= number < count]
        if wrong or layers == []:
            raise OptionError(f"align_layers={layers}: {anatomy.architecture} has layers 0 to {count - 1}")
        numbers = sorted({number % count for number in layers}) if layers is not None else range(count)
        self.modules: list[nn.Module] = []
        for number in numbers:
            part: nn.Module | None
            if what == "mlp":
                part = mlp_of(anatomy, number)
            elif what == "attention":
                part = own_attention(anatomy, number)
            elif what == "layer":
                part = anatomy.layers[number]
            else:
                raise OptionError(f"align_to={what!r}: must be mlp, attention or layer")
            if part is not None:
                self.modules.append(part)
        self.width = anatomy.hidden_size

    @contextmanager
    def record(self, keep: int, *, detach: bool = False) -> Iterator[list[Tensor]]:
        """Within it, a forward pass leaves here the last ``keep`` positions of each part's output, ``[batch, keep, width]``.

        Nothing but slices is taken within the hooks, so that layers may be recomputed for the gradient.

        Args:
            keep: number of positions.
            detach: whether the slices are copied, so that the rest is freed.
        """
        found: dict[int, Tensor] = {}
        states: list[Tensor] = []

        def hook(number: int) -> Any:
            def take(module: nn.Module, inputs: Any, output: Any) -> None:
                hidden = output if isinstance(output, Tensor) else output[0]
                found[number] = hidden[:, -keep:].detach().clone() if detach else hidden[:, -keep:]

            return take

        # Registered now, behind the hooks of adapters: what they make of an output is seen.
        handles = [module.register_forward_hook(hook(number)) for number, module in enumerate(self.modules)]
        try:
            yield states
        finally:
            for handle in handles:
                handle.remove()
        states += [found[number] for number in range(len(self.modules))]
