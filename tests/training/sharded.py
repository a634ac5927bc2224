"""What the processes of a sharded training run do in tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kshot.models import VLM
from kshot.training.answers import AnswerObjective
from tests.models import tiny
from tests.training.toys import Glyphs

STEPS, BATCH, RATE, RANKS = 3, 4, 0.1, 2


def objective() -> AnswerObjective:
    return AnswerObjective(VLM(*tiny.build("llava")), Glyphs(size=STEPS * BATCH, graded=True), summary=0.5)


def descend(made: AnswerObjective, model: nn.Module, rank: int | None = None) -> list[float]:
    """A few steps of plain gradient descent; the losses. The batches of a step are those of two ranks: of one of them, or
    (``None``) one after the other.
    """
    from torch import distributed

    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE)
    losses = []
    for step in range(STEPS):
        parts = [range(step * BATCH + part, (step + 1) * BATCH, RANKS) for part in range(RANKS)]
        batches = [made.collate([made.item(0, index) for index in part]) for part in parts]
        amount = sum(made.amount(batch) for batch in batches)
        own = batches if rank is None else [batches[rank]]
        shown = torch.zeros(())
        for batch in own:
            loss = made.loss(model, batch)[0] / amount
            # FSDP averages the ranks' gradients.
            (loss if rank is None else loss * RANKS).backward()
            shown += loss.detach()
        optimizer.step()
        optimizer.zero_grad()
        if rank is not None:
            distributed.all_reduce(shown)
        losses.append(float(shown))
    return losses


def fully_sharded(folder: str) -> int:
    """FSDP2 itself, without accelerate: layers and root are sharded over two processes."""
    from torch import distributed
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard
    from torch.distributed.tensor import DTensor

    distributed.init_process_group("gloo")
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    mesh = init_device_mesh("cpu", (ranks,))
    made = objective()
    for layer in made.vlm.anatomy.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    fully_shard(made.model, mesh=mesh, reshard_after_forward=True)
    assert isinstance(made.model, FSDPModule)
    assert all(isinstance(p, DTensor) for p in made.model.parameters())
    held = sum(p.to_local().numel() for p in made.model.parameters() if isinstance(p, DTensor))
    losses = descend(made, made.model, rank)
    state: dict[str, Tensor] = get_model_state_dict(
        made.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    if rank == 0:
        save_file({name: value.contiguous() for name, value in state.items()}, Path(folder) / "model.safetensors")
        whole = sum(p.numel() for p in made.model.parameters())
        (Path(folder) / "facts.json").write_text(json.dumps({"losses": losses, "held": held, "whole": whole}))
    distributed.destroy_process_group()
    return 0


def train_as_on_accelerators(words: list[str]) -> int:
    """``kshot train`` whose accelerate takes the processes for ones with accelerators, so that it does shard (with gloo)."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    from kshot.training import run

    plain = run.training_arguments

    def arguments(*given: Any) -> Any:
        made = plain(*given)
        assert made.device.type == "cpu"  # the state of the processes is known from here on
        assert PartialState().distributed_type == DistributedType.MULTI_CPU
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        return made

    trainer = run._trainer

    def checked(*given: Any) -> Any:
        made = trainer(*given)
        assert made.accelerator.distributed_type == DistributedType.FSDP
        assert made.accelerator.is_fsdp2
        print("sharded by accelerate", flush=True)
        return made

    run.training_arguments, run._trainer = arguments, checked
    from kshot.cli import main

    return main(["train", *words])
