"""Train ``tiny-visual`` from nothing: a tokenizer of boards and a Llama that reads and writes their tokens.

Budgets are in steps and every random choice derives from (seed, step), so the same arguments on the same machine and software give the
same weights, whether a run was interrupted or not.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

from kshot.data.derived import generator
from kshot.data.drawing.functions import random_boards
from kshot.data.drawing.tiles import BOARD_PIXELS
from kshot.errors import OptionError
from kshot.training.tiny_visual_decoder import DecoderObjective, spread_codes, tell_places, train_decoder
from kshot.training.tiny_visual_export import export_visual
from kshot.training.tiny_visual_language import (
    BoardBank,
    LanguageShape,
    SentenceMixture,
    SentenceObjective,
    train_sentences,
)
from kshot.training.tiny_visual_tokenizer import CODES, build_vq, make_codebook, stable
from kshot.training.train import objectives
from kshot.visual.tokenizer import VisualTokenizer


@objectives.register("embedded-visual")
def train_tiny_visual(
    out: str,
    *,
    trainer: dict[str, Any] | None = None,
    language_steps: int = 1800,
    language_rate: float = 2e-3,
    second_steps: int = 750,
    third_steps: int = 1400,
    fourth_steps: int = 450,
    fifth_steps: int = 350,
    later_rate: float = 1.5e-3,
    last_rate: float = 7e-4,
    moves: float = 0.6,
    pieces: float = 0.5,
    rows: int = 24,
    chains: float = 0.15,
    sequences: float = 0.1,
    probe: float = 0.3,
    boards: int = 20000,
    decoder_steps: int = 2000,
    decoder_rate: float = 2e-3,
    decoder_boards: int = 8,
    codebook_boards: int = 1500,
    seed: int = 0,
    compile: bool = True,
    work: str | None = None,
    quick: bool = False,
) -> Path:
    """Train a Llama that finds out functions of pictures from examples, with its tokenizer, and write them as one folder.

    Args:
        out: the model folder to write.
        trainer: arguments of transformers' TrainingArguments, for both trainings.
        language_steps, language_rate: steps and peak learning rate of the language model's first descent.
        second_steps, third_steps, later_rate: steps and peak learning rate of two more runs, the second of which descends.
        fourth_steps, fifth_steps, last_rate: and of two short last descents.
        moves: share of sentences that show a function that moves things, in these runs: such functions are learnt last.
        pieces: weight of the probe for single pieces in the last three runs.
        rows: sentences in a step.
        chains: share of sentences of pairs that show two functions in a chain.
        sequences: share of sentences that are sequences.
        probe: weight of the losses that ask the layers for the steps of the way, see
            :mod:`kshot.training.tiny_visual_language`.
        boards: in the bank that sentences are made of.
        decoder_steps, decoder_rate, decoder_boards: steps, peak learning rate and boards in a step of the tokenizer's decoder.
        codebook_boards: boards whose latents make the codebook.
        seed: everything derives from it.
        compile: use torch.compile for the language model (needs a C++ compiler; rounds differently).
        work: folder of checkpoints, from which an interrupted run resumes (default: ``<out>.work``).
        quick: a run of seconds with tiny budgets that exercises every part and learns nothing.

    Returns:
        The model folder.

    Raises:
        OptionError: a budget below 1, or shares that are none.
    """
    budgets = {
        "language_steps": language_steps,
        "second_steps": second_steps,
        "third_steps": third_steps,
        "fourth_steps": fourth_steps,
        "fifth_steps": fifth_steps,
        "decoder_steps": decoder_steps,
        "rows": rows,
        "boards": boards,
    }
    for option, value in budgets.items():
        if value < 1:
            raise OptionError(f"{option} is {value}: give at least 1")
    for option, share in (("chains", chains), ("sequences", sequences), ("moves", moves)):
        if not 0 <= share <= 1:
            raise OptionError(f"{option} is {share}: give a share between 0 and 1")
    shape = LanguageShape()
    if quick:
        language_steps = second_steps = third_steps = fourth_steps = fifth_steps = decoder_steps = decoder_boards = 2
        rows, boards, codebook_boards, compile = 4, 400, 300, False
        shape = LanguageShape(width=32, layers=2, units=48)
    folder = Path(work) if work is not None else Path(f"{os.fspath(out).rstrip('/')}.work")
    vq = build_vq(seed)
    make_codebook(vq, generator(seed, "tiny-visual codebook"), codebook_boards)
    codebook = vq.quantize.embedding.weight.detach()
    torch.manual_seed(seed)
    llama = LlamaForCausalLM(shape.config(CODES))
    bank = BoardBank(boards, seed)
    mixture = SentenceMixture(rows=rows, chains=chains, sequences=sequences)
    data = {"boards": boards, "codebook_boards": codebook_boards}
    first = SentenceObjective(
        llama, codebook, bank, steps=language_steps, mixture=mixture, probe=probe, seed=seed, compile=compile
    )
    train_sentences(first, folder / "language", peak=language_rate, trainer=trainer, config=data)
    later = replace(mixture, moves=moves)
    second = SentenceObjective(
        llama,
        codebook,
        bank,
        steps=second_steps,
        mixture=later,
        probe=probe,
        seed=seed,
        number=1,
        begun=first.model,
        compile=compile,
    )
    train_sentences(second, folder / "second", peak=later_rate, hold=1.0, trainer=trainer, config=data)
    begun = second.model
    runs = (("third", third_steps, later_rate), ("fourth", fourth_steps, last_rate), ("fifth", fifth_steps, last_rate))
    for number, (name, steps, rate) in enumerate(runs, 2):
        run = SentenceObjective(
            llama,
            codebook,
            bank,
            steps=steps,
            mixture=later,
            probe=probe,
            pieces=pieces,
            seed=seed,
            number=number,
            begun=begun,
            compile=compile,
        )
        train_sentences(run, folder / name, peak=rate, hold=0.35, trainer=trainer, config=data)
        begun = run.model
    spread_codes(vq)
    tell_places(vq)
    drawing = DecoderObjective(vq, steps=decoder_steps, boards=decoder_boards, seed=seed)
    train_decoder(drawing, folder / "decoder", peak=decoder_rate, trainer=trainer, config=data)
    tokenizer = VisualTokenizer(vq.half().float(), size=BOARD_PIXELS)
    checked = stable(tokenizer, random_boards(generator(seed, "tiny-visual check"), 64, split="validation"))
    print(f"tokenizer: {checked:.2%} of the squares of 64 new boards get the code of their tile")
    return export_visual(llama, tokenizer, out, vocabulary=shape.vocabulary)
