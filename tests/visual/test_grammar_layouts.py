"""The layouts of the published data scripts, spelt out; and what is drawn within them."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kshot.errors import DataError
from kshot.picture import DrawnPicture
from kshot.visual.grammar import sentence_plan, sentence_type
from kshot.visual.grammar_frames import drawn_frames, drawn_views
from kshot.visual.sentence_pictures import GreyPicture, Mask, MaskedPicture, SquarePicture
from kshot.visual.sources import Frames, Record, Source, record_of
from tests.visual.pictures import colour_of, write


def picture(colour=(10, 200, 90), size=(8, 8)):
    return DrawnPicture(lambda: Image.new("RGB", size, colour), f"{colour}")


PICTURE = picture()


def stills(count, parts=1):
    return [record_of(f"r{i:03}", *[PICTURE] * parts) for i in range(count)]


def track(sequence, modality, length):
    return Frames(tuple(Source(f"{sequence}/{modality}/{i}", PICTURE) for i in range(length)))


def tracks(lengths, modalities=("rgb", "flow")):
    return [
        Record(f"s{number}", tracks=tuple(track(f"s{number}", m, length) for m in modalities))
        for number, length in enumerate(lengths)
    ]


def test_pairs(tmp_path):
    """tokenize_paired_dataset: x1 y1 ... x8 y8, 16 pictures."""
    write(tmp_path / "in", [f"{i}.jpg" for i in range(16)])
    write(tmp_path / "out", [f"{i}.png" for i in range(16)])
    plan = sentence_plan("pairs", x=tmp_path / "in", y=tmp_path / "out")
    assert len(plan) == 2
    assert plan.images == 16
    assert plan.left_over == 0
    for sentence in plan:
        assert sentence.roles == ("x", "y") * 8
        for x, y in zip(sentence.sources[::2], sentence.sources[1::2], strict=True):
            assert x.removesuffix(".jpg") == y.removesuffix(".png")
        for source, shown in zip(sentence.sources, sentence.pictures, strict=True):
            assert shown.load().getpixel((0, 0)) == colour_of(source)
    assert {s for sentence in plan for s in sentence.sources[::2]} == {f"{i}.jpg" for i in range(16)}


def test_colorization():
    """tokenize_colorization_dataset: grey colour x 8, grey by the published weights."""
    records = [record_of(f"r{i}", picture((i, 255 - i, 3 * i % 256))) for i in range(16)]
    plan = sentence_type("colorization").plan(records)
    assert plan.images == 16
    for sentence in plan:
        assert sentence.roles == ("x", "y") * 8
        assert sentence.sources[::2] == sentence.sources[1::2]
        for grey, colour in zip(sentence.pictures[::2], sentence.pictures[1::2], strict=True):
            r, g, b = colour.load().getpixel((0, 0))
            assert grey.load().getpixel((0, 0)) == (round(0.2989 * r + 0.5870 * g + 0.1140 * b),) * 3


def test_grey_of_white_is_white():
    assert GreyPicture(picture((255, 255, 255))).load().getpixel((3, 3)) == (255, 255, 255)


def test_inpainting():
    """tokenize_inpainting_dataset: masked full x 8; another mask in every epoch, and for every picture."""
    plan = sentence_type("inpainting", epochs=2, size=64, seed=3).plan(stills(8))
    masks = {}
    for epoch, sentence in enumerate(plan):
        assert sentence.roles == ("x", "y") * 8
        assert sentence.sources[::2] == sentence.sources[1::2]
        for source, masked, full in zip(
            sentence.sources[::2], sentence.pictures[::2], sentence.pictures[1::2], strict=True
        ):
            masks[source, epoch] = masked.mask
            hidden, whole = np.asarray(masked.load()), np.asarray(full.load())
            assert hidden.shape == whole.shape == (64, 64, 3)
            shown = masked.mask.shown(64)
            assert (hidden[shown] == whole[shown]).all()
            assert not hidden[~shown].any()
    assert len(set(masks.values())) == 16


def test_a_mask_belongs_to_its_picture_whatever_else_there_is():
    made = sentence_type("inpainting", seed=3, shots=1)
    few, many = ({s.sources[0]: s.pictures[0].mask for s in made.plan(stills(count))} for count in (8, 30))
    assert few.items() <= many.items()


@pytest.mark.parametrize(("shots", "modalities", "images"), [(None, 5, 15), (None, 7, 14), (2, 3, 6), (None, 20, 20)])
def test_annotations(shots, modalities, images):
    """tokenize_multi_datasets: [pi(m1 .. mk)] x shots; one order a sentence, shared by its shots."""
    names = [f"m{i}" for i in range(modalities)]
    made = sentence_type("annotations", modalities=dict.fromkeys(names, "-"), shots=shots, seed=1, epochs=2)
    records = [record_of(f"r{i}", *[picture((i, m, 0)) for m in range(modalities)]) for i in range(40)]
    plan = made.plan(records)
    assert plan.images == images
    orders = set()
    for sentence in plan:
        shot = [sentence.roles[i : i + modalities] for i in range(0, images, modalities)]
        assert len(set(shot)) == 1
        assert sorted(shot[0]) == sorted(names)
        orders.add(shot[0])
        for place in range(0, images, modalities):
            assert len(set(sentence.sources[place : place + modalities])) == 1
        for role, source, shown in zip(sentence.roles, sentence.sources, sentence.pictures, strict=True):
            assert shown.load().getpixel((0, 0)) == (int(source[1:]), int(role[1:]), 0)
    assert len(orders) > min(6, len(plan)) / 2


def test_annotations_in_a_fixed_order_and_some_of_them():
    modalities = {"rgb": "-", "depth": "-", "edges": "-"}
    fixed = sentence_type("annotations", modalities=modalities, order="fixed", shots=2).plan(stills(20, 3))
    assert {s.roles for s in fixed} == {("rgb", "depth", "edges") * 2}
    some = sentence_type("annotations", modalities=modalities, choose=2, shots=2, epochs=4).plan(stills(20, 3))
    assert {s.roles[:2] for s in some} == set(itertools.permutations(modalities, 2))
    assert all(s.roles[:2] == s.roles[2:] for s in some)
    both = sentence_type("annotations", modalities=modalities, choose=2, order="fixed", epochs=4).plan(stills(20, 3))
    assert {s.roles[:2] for s in both} == set(itertools.combinations(modalities, 2))
    assert both.images == 16


def test_category():
    """The paper's categories: 16 pictures of one class."""
    records = [record_of(f"c{c}/{i}", PICTURE, group=f"c{c}") for c in range(3) for i in range(16 * (c + 1) + c)]
    plan = sentence_type("category").plan(records)
    assert len(plan) == 1 + 2 + 3
    assert plan.left_over == 0 + 1 + 2
    for sentence in plan:
        assert len({source.partition("/")[0] for source in sentence.sources}) == 1
        assert len(set(sentence.sources)) == 16


def test_category_shots():
    """What tokenize_catogory_images means to make: cat1 x 4, cat2 x 4, cat3 x 4, cat4 x 4."""
    records = [record_of(f"c{c}/{i}", PICTURE, group=f"c{c}") for c in range(8) for i in range(9)]
    plan = sentence_type("category_shots", epochs=2).plan(records)
    assert plan.images == 16
    assert plan.per_epoch == 8 * 2 // 4
    assert plan.left_over == 8
    for sentence in plan:
        classes = [source.partition("/")[0] for source in sentence.sources]
        runs = [(name, len(list(run))) for name, run in itertools.groupby(classes)]
        assert [size for _, size in runs] == [4] * 4
        assert len({name for name, _ in runs}) == 4


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=12),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(0, 3),
)
def test_category_shots_make_as_many_sentences_as_there_can_be(sizes, each, categories, seed):
    """t sentences of m different classes can be made of chunk counts c exactly if the sum of min(c, t) reaches t*m."""
    records = [record_of(f"c{c}/{i}", PICTURE, group=f"c{c}") for c, size in enumerate(sizes) for i in range(size)]
    chunks = [size // each for size in sizes]
    best = max(t for t in range(sum(chunks) + 1) if sum(min(c, t) for c in chunks) >= t * categories)
    made = sentence_type("category_shots", per_category=each, categories=categories, seed=seed)
    if not best:
        with pytest.raises(DataError):
            made.plan(records)
        return
    plan = made.plan(records)
    assert len(plan) == best
    sources = [source for sentence in plan for source in sentence.sources]
    assert len(sources) == len(set(sources)) == best * each * categories
    usable = sum(size for size in sizes if size >= each)
    assert plan.left_over == usable - len(sources)
    assert len(plan.skipped) == sum(0 < size < each for size in sizes)


def test_images():
    plan = sentence_type("images", epochs=2).plan(stills(3))
    assert [sentence.sources for sentence in plan] == [("r000",), ("r001",), ("r002",)] * 2
    assert {sentence.roles for sentence in plan} == {("image",)}


@given(st.integers(2, 20), st.integers(0, 60), st.integers(1, 6), st.integers(0, 5))
def test_strides_are_those_of_the_spec(images, beyond, most, seed):
    """Stride U{1 .. min((L-1)//(n-1), max_stride)}, any start from which the last frame is still there."""
    length = images + beyond
    frames = drawn_frames(length, images, most, None, np.random.default_rng(seed))
    steps = {b - a for a, b in itertools.pairwise(frames)}
    assert len(steps) == 1
    assert 1 <= steps.pop() <= min((length - 1) // (images - 1), most)
    assert 0 <= frames[0] <= frames[-1] < length


def test_every_stride_and_start_is_drawn():
    length, images = 11, 4
    drawn = Counter(
        tuple(drawn_frames(length, images, 4, None, np.random.default_rng(seed))[:2]) for seed in range(3000)
    )
    possible = {(start, start + stride) for stride in (1, 2, 3) for start in range(length - 3 * stride)}
    assert set(drawn) == possible
    strides = Counter()
    for (start, second), count in drawn.items():
        strides[second - start] += count
    assert all(900 < count < 1100 for count in strides.values())


@pytest.mark.parametrize(("fixed", "stride"), [(1, 1), (3, 3), (30, 6)])
def test_a_fixed_stride_is_shortened_where_it_must_be(fixed, stride):
    frames = drawn_frames(100, 16, None, fixed, np.random.default_rng(0))
    assert {b - a for a, b in itertools.pairwise(frames)} == {stride}


@given(st.integers(1, 16), st.integers(0, 40), st.integers(0, 5), st.sampled_from([None, 1, 2, 50]))
def test_views_go_around_without_a_view_twice(images, beyond, seed, fixed):
    length = images + beyond
    views = drawn_views(length, images, None, fixed, np.random.default_rng(seed))
    assert len(set(views)) == images
    assert len({(b - a) % length for a, b in itertools.pairwise(views)}) <= 1
    assert all(0 <= view < length for view in views)


def test_frames_and_their_strides():
    """tokenize_seq_images: f1 .. f16. tokenize_video: a sentence for every fixed stride."""
    records = [Record(r.id, tracks=r.tracks[:1]) for r in tracks([16, 46, 200, 12])]
    plan = sentence_type("frames").plan(records)
    assert len(plan) == 3
    assert plan.skipped == [("s3", "too short: 12 frames of 16")]
    assert plan[0].sources == tuple(f"s0/rgb/{i}" for i in range(16))
    assert plan[0].roles == ("frame",) * 16
    fixed = sentence_type("frames", strides=[10, 3]).plan(records)
    assert len(fixed) == 6
    strides = []
    for sentence in fixed:
        numbers = [int(source.rpartition("/")[2]) for source in sentence.sources]
        assert len({b - a for a, b in itertools.pairwise(numbers)}) == 1
        strides.append((sentence.sources[0][:2], numbers[1] - numbers[0]))
    assert strides == [("s0", 1), ("s0", 1), ("s1", 3), ("s1", 3), ("s2", 10), ("s2", 3)]
    assert fixed.describe()["strides_shortened"] == {"10": 2, "3": 1}


def test_rotation_passes_the_end():
    records = [Record("object", tracks=(track("object", "views", 24),))]
    plan = sentence_type("rotation", epochs=60).plan(records)
    starts = set()
    for sentence in plan:
        numbers = [int(source.rpartition("/")[2]) for source in sentence.sources]
        starts.add(numbers[0])
        assert numbers == [(numbers[0] + i) % 24 for i in range(16)]
    assert len(starts) > 15


def spelt(sentence):
    """s3/rgb/7 as r7 of the shot's first frame 7: letters of shot and modality, numbers of the frames."""
    return [re.sub(r"^s(\d)/(\w)\w*/(\d+)$", r"\2\3", source) for source in sentence.sources]


def test_sequences():
    """tokenize_multi_seq_images: (shot, task, frame) and (shot, frame, task), made to fit: 2 x 2 x 4 pictures, not 64."""
    made = sentence_type("sequences", modalities={"rgb": "-", "flow": "-"}, max_stride=1)
    plan = made.plan(tracks([4] * 4))
    assert plan.images == 16
    assert len(plan) == 4
    separate, interleaved = plan[0], plan[1]
    assert spelt(separate) == ["r0", "r1", "r2", "r3", "f0", "f1", "f2", "f3"] * 2
    assert separate.roles == (*["rgb"] * 4, *["flow"] * 4) * 2
    assert spelt(interleaved) == ["r0", "f0", "r1", "f1", "r2", "f2", "r3", "f3"] * 2
    assert interleaved.roles == ("rgb", "flow") * 8
    for sentence in (separate, interleaved):
        shots = [{source[:2] for source in sentence.sources[start : start + 8]} for start in (0, 8)]
        assert all(len(shot) == 1 for shot in shots)
        assert shots[0] != shots[1]


@pytest.mark.parametrize("layout", ["separate", "interleaved"])
def test_sequences_in_one_layout_show_the_frames_of_both(layout):
    modalities = {"rgb": "-", "flow": "-"}
    both = sentence_type("sequences", modalities=modalities, seed=2).plan(tracks([30] * 6))
    one = sentence_type("sequences", modalities=modalities, seed=2, layout=layout).plan(tracks([30] * 6))
    assert [s.sources for s in one] == [s.sources for s in both[layout == "interleaved" :: 2]]
    assert [sorted(s.sources) for s in both[::2]] == [sorted(s.sources) for s in both[1::2]]


def test_modalities_of_a_shot_show_the_same_frames():
    made = sentence_type("sequences", modalities={"rgb": "-", "flow": "-", "depth": "-"}, seed=4, epochs=3)
    assert made.shots == 1
    for sentence in made.plan(tracks([50] * 3, ("rgb", "flow", "depth"))):
        frames = {role: [s.rpartition("/")[2] for s, r in zip(sentence.sources, sentence.roles, strict=True) if r == role]
                  for role in ("rgb", "flow", "depth")}  # fmt: skip
        assert frames["rgb"] == frames["flow"] == frames["depth"]


def test_co3d(tmp_path):
    """tokenize_co3d: [4 images, 4 masks] x shots and [4 images, 4 depth_masks] x shots; 2 shots in 16 pictures, not 4 in 32."""
    for category, count in (("apple", 4), ("bench", 3)):
        for number in range(count):
            write(
                tmp_path,
                [
                    f"{category}/{number}/{kind}/frame{i:06}{ext}"
                    for kind, ext in (("images", ".jpg"), ("masks", ".png"), ("depth_masks", ".png"), ("depths", ".jpg.geometric.png"))
                    for i in range(1, 5)
                ],
            )  # fmt: skip
    plan = sentence_plan("co3d", folder=tmp_path, annotations=["masks", "depth_masks"])
    assert plan.images == 16
    assert len(plan) == 2 * (2 + 1)
    assert plan.left_over == 1
    for number, sentence in enumerate(plan):
        kind = ("masks", "depth_masks")[number % 2]
        assert sentence.roles == (*["images"] * 4, *[kind] * 4) * 2
        shots = [sentence.sources[:8], sentence.sources[8:]]
        objects = [shot[0].rsplit("/", 2)[0] for shot in shots]
        assert objects[0].split("/")[0] == objects[1].split("/")[0]
        assert objects[0] != objects[1]
        for shot, held in zip(shots, objects, strict=True):
            assert shot[:4] == tuple(f"{held}/images/frame{i:06}.jpg" for i in range(1, 5))
            assert shot[4:] == tuple(f"{held}/{kind}/frame{i:06}.png" for i in range(1, 5))
    assert sentence_plan("co3d", folder=tmp_path, same_category=False).per_epoch == 3
    assert len(sentence_plan("co3d", folder=tmp_path)) == 3


@given(st.integers(0, 200))
def test_masks_are_those_of_the_spec(seed):
    random = np.random.default_rng(seed)
    hole = Mask.draw(random, 1.0)
    left, top, side = hole.hole
    assert 25 <= side <= 127
    assert 0 <= left <= 256 - side
    assert 0 <= top <= 256 - side
    shown = hole.shown(256)
    assert (~shown).sum() == side * side
    assert not shown[top : top + side, left : left + side].any()
    patches = Mask.draw(random, 0.0)
    grid = patches.shown(256).reshape(8, 32, 8, 32)
    assert (grid == grid[:, :1, :, :1]).all()
    assert tuple(grid[:, 0, :, 0].reshape(-1)) == patches.kept
    assert (patches.shown(32) == grid[:, ::8, :, ::8].reshape(32, 32)).all()
    assert abs((~hole.shown(64)).sum() - (side / 4) ** 2) <= side / 2 + 1


def test_how_often_masks_are_holes_and_how_much_patches_keep():
    drawn = [Mask.draw(np.random.default_rng(seed), 0.3) for seed in range(2000)]
    assert 0.27 < np.mean([mask.hole is not None for mask in drawn]) < 0.33
    kept = [np.mean(mask.kept) for mask in drawn if mask.hole is None]
    assert 0.47 < np.mean(kept) < 0.53  # r is uniform: deciles are even, unlike those of one fixed share
    assert all(0.06 < np.mean([(low <= k < low + 0.1) for k in kept]) < 0.14 for low in np.arange(0, 0.9, 0.1))
    sides = [mask.hole[2] for mask in drawn if mask.hole]
    assert min(sides) < 28
    assert max(sides) > 124
    assert 70 < np.mean(sides) < 82


def test_made_pictures_are_equal_if_all_they_depend_on_is():
    source, mask = picture(), Mask(hole=(0, 0, 25))
    square = SquarePicture(source, 64, "squash")
    same = MaskedPicture(SquarePicture(source, 64, "squash"), Mask(hole=(0, 0, 25)))
    made = MaskedPicture(square, mask)
    assert made == same
    assert hash(made) == hash(same)
    assert made.digest == same.digest
    others = [
        MaskedPicture(square, Mask(hole=(1, 0, 25))),
        MaskedPicture(SquarePicture(source, 32, "squash"), mask),
        MaskedPicture(SquarePicture(source, 64, "crop"), mask),
        square,
        GreyPicture(square),
    ]
    assert all(made != other and made.digest != other.digest for other in others)
    assert made.origin is source
