"""The one Trainer: Hugging Face's, told what to do by an :class:`~kshot.training.objective.Objective`.

What it adds are guarantees. Data depend on (seed, epoch, index), whatever the number of loader workers and ranks, and each item is
learnt once an epoch. A checkpoint counts only once it is complete, so that a run that was killed at any moment resumes and ends with
the same bits as one that was not.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset, Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from kshot.errors import CannotWrite, ModelError
from kshot.training.objective import Objective
from kshot.whole_file import write_text

COMPLETE = "complete"
"""Name of the empty file that is written last into a checkpoint."""

Key = tuple[int, int, bool]
"""(epoch, index) of an item, and whether it counts (or only fills up the last step of several ranks)."""


class KeyedDataset(Dataset[Any]):
    """An objective's items by key; each with whether it counts."""

    def __init__(self, objective: Objective):
        self.objective = objective

    def __len__(self) -> int:
        return len(self.objective)

    def __getitem__(self, key: Key) -> tuple[Any, bool]:
        epoch, index, counts = key
        return self.objective.item(epoch, index), counts


class KeySampler(Sampler[Key]):
    """The keys of one epoch, in the objective's order; loader workers are told the epoch with every key.

    Args:
        objective: whose items.
        multiple: fill the epoch up to a multiple of so many keys, with such that do not count. (Otherwise accelerate would give
            several ranks some items twice, so that a step of two ranks would not be the same as that of one.)
    """

    def __init__(self, objective: Objective, multiple: int = 1):
        self.objective, self.multiple, self.epoch = objective, multiple, 0

    def __len__(self) -> int:
        return -(-len(self.objective) // self.multiple) * self.multiple

    def __iter__(self) -> Iterator[Key]:
        epoch, given, index = self.epoch, 0, 0
        for index in map(int, self.objective.order(epoch)):
            yield epoch, index, True
            given += 1
        yield from [(epoch, index, False)] * (-given % self.multiple)


class Collator:
    """A batch of the items that count."""

    def __init__(self, objective: Objective):
        self.objective = objective

    def __call__(self, pairs: Sequence[tuple[Any, bool]]) -> dict[str, Any]:
        items = [item for item, counts in pairs if counts]
        if items:
            return self.objective.collate(items)
        return self.objective.blank(self.objective.collate([pairs[0][0]]))


class KshotTrainer(Trainer):
    """Hugging Face's Trainer for an :class:`~kshot.training.objective.Objective`.

    Args:
        objective: model, data and loss.
        args: TrainingArguments.
        keep: number of complete checkpoints to keep.
        options: further arguments of Trainer.
    """

    def __init__(self, objective: Objective, args: TrainingArguments, *, keep: int = 2, **options: Any):
        self.objective: Objective = objective
        self.keep = keep
        several = args.world_size > 1 and not args.dataloader_drop_last
        self.sampler = KeySampler(objective, args.train_batch_size * args.world_size if several else 1)
        self._parts: dict[str, Tensor] = {}
        super().__init__(
            model=objective.model,
            args=args,
            train_dataset=KeyedDataset(objective),
            data_collator=Collator(objective),
            **options,
        )
        self.loss_is_scaled_for_ga = True  # the loss is a sum, divided by the amount of the whole step
        self.remove_callback(PrinterCallback)
        self.add_callback(_TellEpoch(self.sampler))
        if args.disable_tqdm:
            self.add_callback(_Say())

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Key]:
        return self.sampler

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """The amount of a whole optimiser step: of all its batches on all ranks."""
        amounts = torch.tensor([self.objective.amount(batch) for batch in batch_samples], dtype=torch.float64)
        amount = amounts.sum(0).float().to(device)
        if self.args.world_size > 1:
            amount = self.accelerator.gather(amount).view(-1, *amount.shape).sum(0)
        return amount.clamp_min(1)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        total, parts = self.objective.loss(model, inputs)
        own = torch.tensor(self.objective.amount(inputs), device=total.device)
        count = own.flatten()[0]
        for name, value in parts.items():
            weighted = torch.stack([value.detach().float() * count, count])
            self._parts[name] = self._parts[name] + weighted if name in self._parts else weighted
        amount = own if num_items_in_batch is None else num_items_in_batch
        # Ranks average their gradients; this makes it a sum over ranks.
        loss = (total * self.args.world_size / amount).sum()
        return (loss, None) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and self._parts:  # the same on all ranks
            sums = self.accelerator.reduce(torch.stack(list(self._parts.values())), "sum")
            means = (sums[:, 0] / sums[:, 1].clamp_min(1)).tolist()
            logs |= dict(zip(self._parts, means, strict=True))
            self._parts = {}
        if "loss" in logs:
            logs |= self.objective.progress(self.state.global_step)
        super().log(logs, *args, **kwargs)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        factor = self.objective.rate_factor()
        if factor is None:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            trained: Any = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = LambdaLR(trained, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        own = self.objective.decayed(model)
        names: list[str] = super().get_decay_parameter_names(model) if own is None else own
        return names

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # an estimate by the number of input elements would be wrong here: batches hold more than one tensor

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if state_dict is not None:
            super()._save(output_dir, state_dict)  # what sharded training has gathered
        elif self.args.should_save:
            model = self.accelerator.unwrap_model(self.model)
            folder = Path(output_dir or str(self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            if hasattr(model, "peft_config"):
                # Adapters only. PEFT would look for the base model, on the Hub if need be, to see whether its vocabulary has grown.
                model.save_pretrained(str(folder), save_embedding_layers=False)
            else:
                # Under the names that the parameters have here. save_pretrained may write those of older versions of an
                # architecture, which a resuming Trainer would pass over in silence.
                save_model(model, str(folder / "model.safetensors"))

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:
            # A run that was killed behind its last checkpoint. Trainer itself would do one step too many.
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def full_state(self) -> dict[str, Tensor] | None:
        """All parameters, gathered from the ranks that share them; ``None`` if each rank holds them all. To be called on all ranks."""
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            return None
        state: dict[str, Tensor] = self.accelerator.get_state_dict(
            self.deepspeed if self.is_deepspeed_enabled else self.model
        )
        return state

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """A checkpoint must hold all that is trained; tensors that are tied to another one are stored once.

        Raises:
            ModelError: something is missing or does not belong to the model.
        """
        held = self.accelerator.unwrap_model(self.model).state_dict(keep_vars=True)
        loaded = {tensor.data_ptr() for name, tensor in held.items() if name not in load_result.missing_keys}
        missing = [name for name in load_result.missing_keys if held[name].data_ptr() not in loaded]
        wrong = [*missing, *load_result.unexpected_keys]
        if wrong:
            raise ModelError(
                f"the checkpoint is of another model: {', '.join(wrong[:3])} do not fit ({len(wrong)} in all)"
            )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(str(self.args.output_dir))
        made = folder / f"checkpoint-{self.state.global_step}"
        with writing(made, "free some space; the same command goes on from the checkpoint before"):
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                _flush(made)
                (made / COMPLETE).touch()
                _flush(made)
                for old in complete_checkpoints(folder)[: -self.keep]:
                    # From now on it must not count: a kill may leave half of it.
                    (old / COMPLETE).unlink()
                    shutil.rmtree(old, ignore_errors=True)
        self.accelerator.wait_for_everyone()


class _TellEpoch(TrainerCallback):
    """Tells the sampler which epoch begins. (accelerate's loaders do so only where they do not wrap the sampler twice.)"""

    def __init__(self, sampler: KeySampler):
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.sampler.epoch = int((state.epoch or 0.0) + 1e-6)


class _Say(TrainerCallback):
    """A line a logging step, where no progress bar is shown."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and "loss" in (logs or {}):
            rate = f", learning rate {logs['learning_rate']:.3g}" if "learning_rate" in logs else ""
            line = f"step {state.global_step:,} of {state.max_steps:,}: loss {logs['loss']:.4f}{rate}"
            print(line, file=sys.stderr, flush=True)


def complete_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints that were written to the end, the oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if (path / COMPLETE).is_file()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def resume_point(folder: Path, *, leads: bool) -> str | None:
    """The checkpoint to go on from, or ``None``; what a kill left incomplete is removed by the leading process."""
    found = complete_checkpoints(folder)
    if leads:
        for path in folder.glob("checkpoint-*"):
            if path not in found:
                shutil.rmtree(path, ignore_errors=True)
    return str(found[-1]) if found else None


def write_log(trainer: Trainer, path: Path) -> None:
    """The log of a run, one JSON object a line: step, epoch, loss, learning rate, gradient norm."""
    if not trainer.args.should_save:
        return
    lines = [json.dumps(entry) for entry in trainer.state.log_history]
    write_text(path, "\n".join(lines) + "\n")


@contextmanager
def writing(path: Path, remedy: str) -> Iterator[None]:
    """Errors of the disk, as those who can do something about them need to read them.

    Raises:
        CannotWrite: instead of what Python, torch and safetensors raise.
    """
    try:
        yield
    except OSError as error:
        raise CannotWrite(Path(error.filename or path), error.strerror or str(error), remedy) from error
    except SafetensorError as error:
        raise CannotWrite(path, str(error), remedy) from error
    except RuntimeError as error:
        if not any(sign in str(error) for sign in ("PytorchStreamWriter", "inline_container", "unexpected pos")):
            raise
        raise CannotWrite(path, str(error).splitlines()[0], remedy) from error


def _flush(folder: Path) -> None:
    """Have a folder's files and their names on the disk before it is called complete."""
    for path in (*folder.rglob("*"), folder, folder.parent):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


__all__ = [
    "Collator",
    "KeySampler",
    "KeyedDataset",
    "KshotTrainer",
    "complete_checkpoints",
    "resume_point",
    "write_log",
    "writing",
]
