"""Registries and building by name."""

from __future__ import annotations

import sys
import types
from importlib.metadata import EntryPoint

import pytest

from kshot import registry as registry_module
from kshot.data.task import Task, build, load_task
from kshot.errors import KshotError, OptionError, UnknownName
from kshot.registry import Registry


def test_parts_are_found_by_name_and_listed_in_order():
    things: Registry[object] = Registry("thing", "kshot.no_such_group")
    things.register("b")(len)
    things.register("a")(sum)
    assert things.get("b") is len
    assert list(things) == things.names() == ["a", "b"]
    assert "a" in things
    assert "c" not in things
    with pytest.raises(UnknownName, match="unknown thing 'bb': did you mean 'b'"):
        things.get("bb")


def test_a_name_is_taken_once_but_a_module_may_be_loaded_again():
    things: Registry[object] = Registry("thing", "kshot.no_such_group")

    def make():
        class Part:
            pass

        return Part

    things.register("p")(make())
    things.register("p")(make())  # the same part, as after a reload
    with pytest.raises(KshotError, match="registered twice"):
        things.register("p")(len)


def test_modules_are_imported_on_first_use_and_may_look_up_parts_meanwhile(monkeypatch):
    things: Registry[object] = Registry("thing", "kshot.no_such_group", ("kshot_test_module",))
    module = types.ModuleType("kshot_test_module")
    asked = []

    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name != "kshot_test_module":
                return None
            from importlib.machinery import ModuleSpec

            return ModuleSpec(name, Finder)

        @staticmethod
        def create_module(spec):
            return module

        @staticmethod
        def exec_module(module):
            things.register("one")(len)
            asked.append("one" in things)

    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    monkeypatch.delitem(sys.modules, "kshot_test_module", raising=False)
    assert asked == []
    assert things.names() == ["one"]
    assert asked == [True]
    sys.modules.pop("kshot_test_module", None)


def test_packages_add_parts_through_entry_points_and_do_not_replace_ours(monkeypatch):
    points = [
        EntryPoint("theirs", "math:sqrt", "kshot.things"),
        EntryPoint("ours", "math:floor", "kshot.things"),
    ]
    monkeypatch.setattr(registry_module, "entry_points", lambda group: points if group == "kshot.things" else [])
    things: Registry[object] = Registry("thing", "kshot.things")
    things.register("ours")(len)
    assert things.get("ours") is len
    assert things.get("theirs")(9.0) == 3.0


def test_wrong_and_missing_options_are_errors_that_list_the_options():
    things: Registry[object] = Registry("thing", "kshot.no_such_group")

    @things.register("part")
    def make(root, *, ways=5):
        raise TypeError("a bug inside")

    with pytest.raises(OptionError, match=r"thing 'part': .*'way'; its options are: root, ways"):
        build("thing", things, "part", {"root": 1, "way": 3})
    with pytest.raises(OptionError, match="missing a required argument: 'root'"):
        build("thing", things, "part", {})
    with pytest.raises(TypeError, match="a bug inside"):  # not disguised as a wrong option
        build("thing", things, "part", {"root": 1})


def test_a_task_is_returned_as_it_is_and_an_unknown_one_suggested():
    class Nothing(Task):
        name = "nothing"
        queries = ()
        support = ()

    task = Nothing()
    assert load_task(task) is task
    with pytest.raises(UnknownName, match="did you mean 'vqav2'"):
        load_task("vqav")
