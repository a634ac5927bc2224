"""Fixtures of the converters' tests."""

from __future__ import annotations

import pytest

from tests.methods.common import base


@pytest.fixture(scope="module")
def configured(tmp_path_factory):
    """Folders of base models that hold no weights: config.json is enough."""
    place = tmp_path_factory.mktemp("bases")

    def folder(family):
        base(family)[0].config.save_pretrained(place / family)
        assert [path.name for path in (place / family).iterdir()] == ["config.json"]
        return place / family

    return folder
