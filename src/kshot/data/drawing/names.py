"""Names that no model has met: pronounceable inventions, and strings of random letters.

Invented names come in two families. A name consists of one or two *stems* (consonants, vowel, consonants) and an ending; all
stems of a name belong to one family, which a hash of the stem decides. The embedded model was trained on names of one family
only, so that names of the other measure whether it copies what it reads rather than what it knows.
"""

from __future__ import annotations

import hashlib

import numpy as np

_ONSETS = tuple("b d f g h j k l m n p r s t v w z bl br dr fl fr gl gr kl kr pl pr sk sl sn st tr".split())  # noqa: SIM905
_VOWELS = tuple("aeiou")
_CODAS = tuple("b d f g k l m n p r s t x z ck ld lm nd ng nt rk rn sh st".split())  # noqa: SIM905
_ENDINGS = ("", "", "", "a", "o", "i", "et", "er", "in", "on", "us", "ul", "ie", "ane", "ock")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"

# Stems that would read as something rude, hateful or sexual in English, alone or inside a longer name.
_AVOIDED = frozenset(
    "arse ass bast bit bitch bob boob bum butt cock coc coon crap cum cunt damn dick dik dork drug fag fart fat fok fuck fuk "  # noqa: SIM905
    "fuc gas gay god gook gimp hag hell hit hoe homo jap jesus jew jerk kil kill kok knob kum kunt lesb lust minge mong naz nig "
    "nud paki pen pim piss pis poof poon porn prick prik pus rap rat sad sex shag shit shat sit sik slag slut snat spas spast "
    "spic stab tard tit tits tos turd twat vag wank wop whore".split()
)


def invent_name(rng: np.random.Generator, *, seen: bool) -> str:
    """A pronounceable invented name of 3 to 11 lower-case letters, such as "blonder" or "vekapust".

    Args:
        rng: where the randomness comes from.
        seen: a name of the family that the embedded model was trained on, or (``False``) of the one it never met.
            The families have no name in common.
    """
    name = _stem(rng, seen)
    if rng.random() < 0.25:
        name += str(rng.choice(_VOWELS)) + _stem(rng, seen)
    else:
        name += str(rng.choice(_ENDINGS))
    return name


def random_letters(rng: np.random.Generator, k: int) -> str:
    """``k`` lower-case letters drawn independently, the label strings of Link-Context Learning (Tai et al., 2023)."""
    return "".join(_LETTERS[i] for i in rng.integers(0, len(_LETTERS), k))


def is_seen_stem(stem: str) -> bool:
    """Whether a stem belongs to the training family: three of four do, by a hash."""
    return hashlib.blake2b(stem.encode(), digest_size=1).digest()[0] % 4 != 0


def _stem(rng: np.random.Generator, seen: bool) -> str:
    while True:
        stem = str(rng.choice(_ONSETS)) + str(rng.choice(_VOWELS)) + str(rng.choice(_CODAS))
        if is_seen_stem(stem) == seen and not any(word in stem or stem in word for word in _AVOIDED if len(word) > 2):
            return stem
