"""Pictures found in folders and joined by name, never by their place in a listing."""

from __future__ import annotations

import os
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kshot.errors import BadImage, DataError, OptionError
from kshot.visual.grammar import sentence_plan
from kshot.visual.joining import Modality, joined
from kshot.visual.sources import Tree, frame_folders, natural
from tests.visual.pictures import colour_of, numbered, write


def reasons(skipped):
    return {os.path.basename(source): reason for source, reason in skipped}


def test_pictures_are_found_at_any_depth_in_any_case(tmp_path):
    write(tmp_path, ["a.PNG", "b/c/d.Jpg", "b/e.jpeg", "B/f.webp"])
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / ".DS_Store").write_text("")
    (tmp_path / ".hidden").mkdir()
    write(tmp_path / ".hidden", ["x.png"])
    tree = Tree(tmp_path)
    assert tree.names == ["B/f.webp", "a.PNG", "b/c/d.Jpg", "b/e.jpeg"]
    assert tree.others == ["notes.txt"]
    plan = sentence_plan("images", folder=tmp_path)
    assert len(plan) == 4
    assert plan.skipped == [(str(tmp_path / "notes.txt"), "not of the kind by its extension")]
    assert plan[2].sources == ("b/c/d.Jpg",)
    assert plan[2].pictures[0].load().getpixel((0, 0)) == colour_of("b/c/d.Jpg")


def test_a_zip_archive_is_a_folder(tmp_path):
    names = ["photos/a.png", "photos/b.png", "photos/deep/c.png"]
    write(tmp_path, names)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name in [*names]:
            archive.write(tmp_path / name, name)
        archive.writestr("__MACOSX/._a.png", "")
        archive.writestr("readme.md", "")
    plan = sentence_plan("images", folder=tmp_path / "all.zip")
    assert [sentence.sources[0] for sentence in plan] == names
    assert [sentence.pictures[0].load().getpixel((0, 0)) for sentence in plan] == [colour_of(name) for name in names]
    assert [reason for _, reason in plan.skipped] == ["not of the kind by its extension"]


def test_several_folders(tmp_path):
    write(tmp_path / "one", numbered("", 3))
    write(tmp_path / "two", numbered("", 2))
    plan = sentence_plan("images", folder=[tmp_path / "one", tmp_path / "two"])
    assert [s.sources[0] for s in plan] == ["one/000.png", "one/001.png", "one/002.png", "two/000.png", "two/001.png"]
    assert plan[4].pictures[0].name == str(tmp_path / "two" / "001.png")
    write(tmp_path / "other" / "one", numbered("", 3))
    with pytest.raises(DataError, match="same name"):
        sentence_plan("images", folder=[tmp_path / "one", tmp_path / "other" / "one"])


def test_classes_of_several_folders_are_kept_apart(tmp_path):
    for root in ("one", "two"):
        write(tmp_path / root / "cat", numbered("", 4))
    plan = sentence_plan("category", folder=[tmp_path / "one", tmp_path / "two"], images=4)
    assert sorted({source.rpartition("/")[0] for s in plan for source in s.sources}) == ["one/cat", "two/cat"]
    assert all(len({source.partition("/")[0] for source in sentence.sources}) == 1 for sentence in plan)


def test_links_in_a_circle_end(tmp_path):
    write(tmp_path / "data", numbered("", 2))
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data")
    write(tmp_path / "elsewhere", ["z.png"])
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    assert Tree(tmp_path / "data").names == ["000.png", "001.png", "linked/z.png"]


def test_folders_that_hold_nothing(tmp_path):
    with pytest.raises(DataError, match="not found"):
        Tree(tmp_path / "nowhere")
    with pytest.raises(DataError, match="empty"):
        Tree(tmp_path)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(DataError, match=r"no pictures in it \(1 other"):
        Tree(tmp_path)
    with pytest.raises(DataError, match="not a readable zip"):
        Tree(tmp_path / "a.txt")


def test_pairs_are_joined_by_path_and_not_by_order(tmp_path):
    """By order of the listings, b would meet c: a listing that lacks one file would shift all pairs after it."""
    write(tmp_path / "x", ["s/a.png", "s/b.png", "s/d.png", "t/a.png"])
    write(tmp_path / "y", ["s/a.JPG", "s/c.png", "s/d.webp", "t/a.png"])
    plan = sentence_plan("pairs", x=tmp_path / "x", y=tmp_path / "y", shots=1)
    assert sorted(s.sources for s in plan) == [("s/a.png", "s/a.JPG"), ("s/d.png", "s/d.webp"), ("t/a.png", "t/a.png")]
    assert plan.skipped == [
        (str(tmp_path / "x" / "s" / "b.png"), "no partner: 'x' has it, 'y' not"),
        (str(tmp_path / "y" / "s" / "c.png"), "no partner: 'y' has it, 'x' not"),
    ]


def test_as_many_files_on_both_sides_are_no_reason_to_pair_them(tmp_path):
    write(tmp_path / "x", ["a.png", "b.png"])
    write(tmp_path / "y", ["c.png", "d.png"])
    with pytest.raises(DataError, match=r"nothing matches by name: 'x' has 2 \('a' ...\), 'y' has 2 \('c' ...\)"):
        sentence_plan("pairs", x=tmp_path / "x", y=tmp_path / "y")


def test_pairs_by_stem_alone(tmp_path):
    write(tmp_path / "x", ["train/a.png", "val/b.png"])
    write(tmp_path / "y", ["a.png", "b.png"])
    with pytest.raises(DataError, match="join='stem' would join 2"):
        sentence_plan("pairs", x=tmp_path / "x", y=tmp_path / "y", shots=1)
    plan = sentence_plan("pairs", x=tmp_path / "x", y=tmp_path / "y", shots=1, join="stem")
    assert sorted(s.sources for s in plan) == [("train/a.png", "a.png"), ("val/b.png", "b.png")]


def test_a_name_that_two_files_bear_is_listed(tmp_path):
    write(tmp_path / "x", ["a.png", "a.jpg", "b.png"])
    write(tmp_path / "y", ["a.png", "b.png"])
    plan = sentence_plan("pairs", x=tmp_path / "x", y=tmp_path / "y", shots=1)
    assert [s.sources for s in plan] == [("b.png", "b.png")]
    listed = sorted((os.path.relpath(source, tmp_path), reason.partition(":")[0]) for source, reason in plan.skipped)
    assert listed == [("x/a.jpg", "name used twice"), ("x/a.png", "name used twice"), ("y/a.png", "no partner")]


def test_one_folder_with_suffixes(tmp_path):
    write(tmp_path, [*numbered("rgb_", 3), "img.png", "img_mask.png", "img_mask2.png", "lone_mask.png"])
    plan = sentence_plan("pairs", x=tmp_path, y_files="*_mask", shots=1)
    assert [s.sources for s in plan] == [("img.png", "img_mask.png")]
    assert reasons(plan.skipped) == {
        **dict.fromkeys([*numbered("rgb_", 3), "img_mask2.png"], "no partner: 'x' has it, 'y' not"),
        "lone_mask.png": "no partner: 'y' has it, 'x' not",
    }


def test_prefixes_and_extensions_in_patterns(tmp_path):
    write(tmp_path, ["rgb_1.png", "rgb_2.png", "depth_1.png", "depth_2.jpg", "other.png"])
    plan = sentence_plan("pairs", x=tmp_path, x_files="rgb_*", y_files="depth_*.png", shots=1)
    assert [s.sources for s in plan] == [("rgb_1.png", "depth_1.png")]
    assert reasons(plan.skipped) == {
        "depth_2.jpg": "its name does not fit: 'depth_*.png' or 'rgb_*' expected",
        "other.png": "its name does not fit: 'depth_*.png' or 'rgb_*' expected",
        "rgb_2.png": "no partner: 'x' has it, 'y' not",
    }


def test_a_side_may_lie_in_a_sub_folder_of_the_other(tmp_path):
    write(tmp_path, ["a.png", "b.png", "masks/a.png", "masks/b.png"])
    for join in ("path", "stem"):
        plan = sentence_plan("pairs", x=tmp_path, y=tmp_path / "masks", shots=1, join=join)
        assert sorted(s.sources for s in plan) == [("a.png", "a.png"), ("b.png", "b.png")]
        assert plan.skipped == []


def test_the_same_folder_written_in_another_way_is_the_same(tmp_path):
    write(tmp_path / "all", ["a.png", "a_mask.png"])
    (tmp_path / "link").symlink_to(tmp_path / "all")
    with pytest.raises(OptionError, match="same files"):
        sentence_plan("pairs", x=tmp_path / "all", y=f"{tmp_path}/link/")
    plan = sentence_plan("pairs", x=tmp_path / "all", y=f"{tmp_path}/link/", y_files="*_mask", shots=1)
    assert [s.sources for s in plan] == [("a.png", "a_mask.png")]
    assert plan.skipped == []


def test_names_that_are_all_borne_twice(tmp_path):
    write(tmp_path / "x", ["s/a.png", "t/a.png"])
    write(tmp_path / "y", ["a.png"])
    with pytest.raises(DataError, match="every name of 'x' is borne by two files"):
        sentence_plan("pairs", x=tmp_path / "x", y=tmp_path / "y", join="stem")


def test_other_files_are_listed_but_no_error(tmp_path):
    write(tmp_path / "x", ["a.png"])
    (tmp_path / "x" / "readme.txt").write_text("")
    plan = sentence_plan("images", folder=tmp_path / "x", on_bad="error")
    assert len(plan.skipped) == 1


@pytest.mark.parametrize("pattern", ["", "mask", "*_*", "masks/*", None])
def test_patterns_have_one_star(tmp_path, pattern):
    write(tmp_path, ["a.png"])
    with pytest.raises(OptionError, match="pattern"):
        sentence_plan("pairs", x=tmp_path, y_files=pattern)


def test_patterns_that_nothing_fits_and_sides_that_are_the_same(tmp_path):
    write(tmp_path, ["a.png", "b.png"])
    with pytest.raises(DataError, match=r"no file name of 'y' fits its pattern '\*_mask'"):
        sentence_plan("pairs", x=tmp_path, y_files="*_mask")
    with pytest.raises(OptionError, match="same files"):
        sentence_plan("pairs", x=tmp_path, y=tmp_path)


@settings(max_examples=30)
@given(st.lists(st.text("ab01_.", min_size=1, max_size=4), min_size=1, max_size=12, unique=True), st.data())
def test_joining_is_the_intersection_of_names(tmp_path_factory, names, data):
    names = [name for name in names if not name.startswith(".") and not name.endswith(".")]
    left, right = ({n for n in names if data.draw(st.booleans())} for _ in range(2))
    root = tmp_path_factory.mktemp("join")
    for side, held in (("x", left), ("y", right)):
        (root / side).mkdir()
        for name in held:
            (root / side / f"{name}.png").touch()
    sides = {side: Modality(root / side) for side in "xy"}
    if not left & right:
        with pytest.raises(DataError):
            joined(sides)
        return
    found = joined(sides)
    assert [r.id for r in found.records] == sorted(left & right)
    assert all([s.id for s in r.parts] == [f"{r.id}.png"] * 2 for r in found.records)
    assert len(found.skipped) == len(left ^ right)


def test_groups_need_all_modalities(tmp_path):
    write(tmp_path / "rgb", ["a.png", "b.png", "c.png"])
    write(tmp_path / "depth", ["a_depth.png", "b_depth.png", "c.png"])
    write(tmp_path / "edges", ["a.png", "c.png"])
    modalities = {name: tmp_path / name for name in ("rgb", "depth", "edges")}
    plan = sentence_plan("annotations", modalities=modalities, files={"depth": "*_depth"}, shots=1)
    assert [sorted(s.sources) for s in plan] == [["a.png", "a.png", "a_depth.png"]]
    assert {(os.path.relpath(source, tmp_path), reason) for source, reason in plan.skipped} == {
        ("depth/c.png", "its name does not fit: '*_depth' expected"),
        ("rgb/b.png", "no partner: 'rgb' has it, 'edges' not"),
        ("depth/b_depth.png", "no partner: 'depth' has it, 'edges' not"),
        ("rgb/c.png", "no partner: 'rgb' has it, 'depth' not"),
        ("edges/c.png", "no partner: 'edges' has it, 'depth' not"),
    }


def test_frames_are_in_the_order_of_their_numbers(tmp_path):
    write(tmp_path / "s", [f"f{i}.png" for i in (1, 2, 9, 10, 11, 100)])
    folders = frame_folders(Tree(tmp_path))
    assert [s.id for s in folders["s"]] == [f"s/f{i}.png" for i in (1, 2, 9, 10, 11, 100)]
    assert list(frame_folders(Tree(tmp_path / "s"))) == ["."]


@settings(max_examples=40)
@given(st.sets(st.text("a1 0_"), max_size=8), st.randoms())
def test_the_order_of_frames_depends_on_their_names_alone(names, random):
    shuffled = list(names)
    random.shuffle(shuffled)
    assert sorted(shuffled, key=natural) == sorted(sorted(names), key=natural)


def test_classes_too_small_and_pictures_outside_of_classes_are_listed(tmp_path):
    write(tmp_path, ["stray.png", *numbered("big/", 5), *numbered("big/deeper/", 4), *numbered("small/", 7)])
    plan = sentence_plan("category", folder=tmp_path, images=8)
    assert len(plan) == 1
    assert plan.left_over == 1
    assert {reason for _, reason in plan.skipped} == {"in no class folder", "class too small: 7 pictures of 8"}
    with pytest.raises(DataError, match=r"0 pictures make no whole sentence .* 3 sources were left out"):
        sentence_plan("category", folder=tmp_path, images=10)
    write(tmp_path / "flat", numbered("", 5))
    with pytest.raises(DataError, match="no class folders"):
        sentence_plan("category", folder=tmp_path / "flat", images=2)


def test_sequences_need_the_same_frames_in_all_modalities(tmp_path):
    for modality in ("rgb", "flow"):
        write(tmp_path / modality, [f"good/{i}.png" for i in range(12)])
        write(tmp_path / modality, [f"short/{i}.png" for i in range(3)])
    write(tmp_path / "rgb", [f"gap/{i}.png" for i in range(9)])
    write(tmp_path / "flow", [f"gap/{i}.png" for i in range(9) if i != 4])
    write(tmp_path / "rgb", [f"alone/{i}.png" for i in range(9)])
    for modality in ("rgb", "flow"):
        write(tmp_path / modality, [f"twice/{i}.png" for i in range(9)])
    write(tmp_path / "rgb", ["twice/3.jpg"])
    modalities = {"rgb": tmp_path / "rgb", "flow": tmp_path / "flow"}
    plan = sentence_plan("sequences", modalities=modalities, shots=1)
    assert len(plan) == 2
    assert dict(plan.skipped) == {
        "gap": "frames differ: 'rgb' has 9, 'flow' has 8; '4' has no partner",
        "alone": "no partner: 'flow' has no such sequence",
        "short": "too short: 3 frames of 4",
        "twice": "name used twice: twice/3.jpg and twice/3.png of 'rgb'",
    }
    with pytest.raises(DataError, match="no sequence can be used, 5 are left out"):
        sentence_plan("sequences", modalities=modalities, shots=1, frames=13)
    modalities["flow"] = write(tmp_path / "other", ["s/1.png"])
    with pytest.raises(DataError, match="no sequence is there in all of rgb, flow"):
        sentence_plan("sequences", modalities=modalities)


def test_co3d_needs_its_folders(tmp_path):
    write(tmp_path, ["apple/1/images/frame1.jpg"])
    with pytest.raises(DataError, match="'masks' has no such sequence"):
        sentence_plan("co3d", folder=tmp_path)
    write(tmp_path / "flat", ["a.png"])
    with pytest.raises(DataError, match="no folder named 'images' or 'masks'"):
        sentence_plan("co3d", folder=tmp_path / "flat")


def test_a_damaged_picture_shows_when_it_is_looked_at(tmp_path):
    """It is the tokenizing that lists it; nothing takes its place."""
    write(tmp_path / "x", numbered("", 2))
    write(tmp_path / "y", numbered("", 2))
    whole = (tmp_path / "y" / "001.png").read_bytes()
    (tmp_path / "y" / "001.png").write_bytes(whole[: len(whole) // 2])
    plan = sentence_plan("pairs", x=tmp_path / "x", y=tmp_path / "y", shots=2)
    damaged = [p for p in plan[0].pictures if p.name.endswith("y/001.png")]
    with pytest.raises(BadImage, match=r"y/001\.png"):
        damaged[0].load()
