"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
settings.register_profile("kshot", deadline=None)  # a busy machine is no failure
settings.load_profile("kshot")


def find_shared_data() -> Path | None:
    """The folder of optional real data: named by KSHOT_TEST_DATA, or ``shared/data`` beside or above the repository."""
    named = os.environ.get("KSHOT_TEST_DATA")
    root = Path(__file__).resolve().parents[1]
    places = [Path(named)] if named else [folder / "shared" / "data" for folder in (root, *root.parents)]
    return next((place for place in places if place.is_dir()), None)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Optional real data (Omniglot, ISEKAI pictures ...); tests that need it are skipped where it is absent."""
    place = find_shared_data()
    if place is None:
        pytest.skip("real data not found: set KSHOT_TEST_DATA to the folder that holds omniglot/, imagenet/ ...")
    return place
