"""Whether a finished store is worth making again: bad pictures that it was made without may have been put right since."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from kshot.errors import DataError
from kshot.picture import FilePicture, Picture
from kshot.visual.grammar import Sentence
from kshot.visual.store_record import SKIPPED


def put_right(plan: Sequence[Sentence], store: Path) -> bool:
    """Whether a picture that the store lists as bad can be looked at by now, in all forms in which the sentences show it.

    Args:
        plan: the sentences that the store was made of, the bad ones among them.
        store: its folder.
    """
    waiting = _listed(store / SKIPPED)
    if not waiting:
        return False
    shown: dict[str, dict[Picture, None]] = {}
    for number in tqdm(range(len(plan)), "looking for bad pictures", unit="sentence", disable=None, leave=False):
        for picture in plan[number].pictures:
            if picture.name in waiting:
                shown.setdefault(picture.name, {})[picture] = None
    # Some were found when the sentences were laid out without others, and do not come where all are there.
    others = (FilePicture(name) for name in waiting - set(shown))
    return any(all(map(_usable, forms)) for forms in shown.values()) or any(map(_usable, others))


def _listed(file: Path) -> set[str]:
    """The names of the pictures that a store was made without."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
        entries = [json.loads(line) for line in lines if line]
    except (OSError, ValueError):
        return set()
    return {str(entry["picture"]) for entry in entries if "picture" in entry}


def _usable(picture: Picture) -> bool:
    try:
        picture.load()
    except DataError:
        return False
    return True
