"""``kshot methods``: what there is, and the options of each."""

from __future__ import annotations

import pytest

from kshot.cli import main
from kshot.errors import UnknownName
from kshot.evaluation.listing import describe_methods
from kshot.methods import methods
from kshot.methods.of_peft import OF_PEFT

EVERY = [*methods, *OF_PEFT]


def test_every_method_is_listed_with_what_it_is(capsys):
    assert main(["methods"]) == 0
    printed = capsys.readouterr().out
    listed = {part.name: part for part in describe_methods().parts}
    assert list(listed) == EVERY
    for name, part in listed.items():
        assert name in printed
        assert part.summary
    assert {name for name in methods if "no training" in listed[name].summary} == {
        *("task_vector", "function_vector", "icv", "i2cl", "mtv"),
    }
    assert [name for name in EVERY if "can be merged" in listed[name].summary] == ["bias"]


@pytest.mark.parametrize("name", list(methods))
def test_every_option_is_explained(name):
    (part,) = describe_methods([name]).parts
    assert part.options
    assert not [option for option, (_, meaning) in part.options.items() if not meaning]


def test_options_are_those_of_the_command_line(capsys):
    assert main(["methods", "live", "prompt_tuning"]) == 0
    printed = capsys.readouterr().out
    for option in ("--placement", "--alpha", "--num-virtual-tokens"):
        assert option in printed
    assert "--base" not in printed


def test_a_name_that_is_none(capsys):
    with pytest.raises(UnknownName, match="did you mean 'mimic'"):
        describe_methods(["mimc"])
    assert main(["methods", "mimc"]) == 2
    assert "did you mean 'mimic'" in capsys.readouterr().err
