"""``kshot tasks``."""

from __future__ import annotations

import pytest

from kshot.data.task import tasks
from kshot.evaluation.listing import describe_parts, options_of


@pytest.mark.parametrize("name", tasks.names())
def test_every_option_of_a_task_is_explained(name):
    assert [option for option, (_, meaning) in options_of(tasks.get(name)).items() if not meaning] == []


def test_what_a_class_does_not_say_its_base_does():
    (part,) = describe_parts(["rec"]).parts
    assert part.options["style"][1].startswith('"plain" ([x0,y0,x1,y1])')  # its own words before those of the base
    assert part.options["instances"][1].startswith("instances.json, if")
    assert part.options["support_images"] == ("None", "folder (or zip) of its images. Default: that of the queries.")
    assert options_of(tasks.get("vqav2"))["questions"][1] == options_of(tasks.get("vqav2"))["annotations"][1] != ""
