"""Flickr30k Entities, as released and as JSON Lines."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kshot.data.entities_files import read_annotation, read_sentences
from kshot.data.task import load_task
from kshot.errors import DataError
from kshot.metrics import metrics
from kshot.metrics.boxes import find_boxes, without_boxes
from tests.data import box_formats
from tests.data.formats import write_lines

# 12 x 8 pixels stand 2 pixels below the top of a square of 12; the XML counts pixels from 1.
GIRL, DRESS = "[0.000,0.167,0.500,0.500;0.250,0.333,0.750,0.667]", "[0.250,0.333,0.750,0.667]"
CAPTION = f"A little girl{GIRL} in a pink dress{DRESS} climbs the stairs ."


def test_boxes_stand_behind_the_words(tmp_path):
    task = load_task("flickr30k_entities", **box_formats.flickr30k_entities(tmp_path))
    query = task.queries[0]
    assert (len(task.queries), len(task.support)) == (3, 3)
    assert query.answer == CAPTION  # "the stairs" is a scene, "a house" is not in the picture: no boxes
    assert query.references == (CAPTION, f"A girl{GIRL} climbs on the way into a house .")
    assert query.id == "00795"
    assert dict(query.metadata) == {"image_id": "00795.jpg", "size": (12, 8)}
    assert query.images[0].load().size == (12, 12)
    perfect = metrics.get(task.metric)([q.answer for q in task.queries], task.queries)
    assert perfect.details["box_recall"] == perfect.details["box_precision"] == 1


def test_both_forms_say_the_same(tmp_path):
    release = load_task("flickr30k_entities", **box_formats.flickr30k_entities(tmp_path))
    lines = write_lines(tmp_path / "lines" / "CWB_flickr30k_test.jsonl", box_formats.entities_lines(tmp_path))
    for options in (
        {"root": tmp_path / "lines", "images": tmp_path / "flickr30k-images"},
        {"questions": lines, "root": tmp_path},
    ):
        task = load_task("flickr30k_entities", **options, check_images=True)
        assert [(q.id, q.answer, q.references) for q in task.queries] == [
            (q.id, q.answer, q.references) for q in release.queries
        ]
    assert [len(task.pool(q)) for q in task.queries] == [3, 3, 3]


def test_captions_without_boxes(tmp_path):
    task = load_task("flickr30k_entities", **box_formats.flickr30k_entities(tmp_path), boxes=False)
    assert task.queries[0].answer == "A little girl in a pink dress climbs the stairs ."
    assert task.describe()["options"]["boxes"] is False


def test_without_a_training_list_the_other_pictures_are_shown(tmp_path):
    options = box_formats.flickr30k_entities(tmp_path)
    (tmp_path / "train.txt").unlink()
    task = load_task("flickr30k_entities", **options)
    assert [e.id for e in task.pool(task.queries[1])] == ["00795", "20795"]


def sentence_file(folder, text):
    path = folder / "1.txt"
    path.write_text(text)
    return path


def test_the_marks_of_sentences(tmp_path):
    boxes = {"5": [(0, 0, 1, 1)], "6": [(1, 1, 2, 2)]}
    text = (
        "[/EN#5/people/other Two men] , [/EN#6/scene outside] .\n\n"
        "[/EN#7/other A hat] on [/EN#5/people men]\n"
        "Men [ in hats ] and [hats]\n"
    )
    captions = read_sentences(sentence_file(tmp_path, text), boxes)
    assert [c.text for c in captions] == ["Two men , outside .", "A hat on men", "Men [ in hats ] and [hats]"]
    assert captions[0].pieces == (
        ("Two men", ((0, 0, 1, 1),)),
        (" ,", ()),
        (" outside", ((1, 1, 2, 2),)),
        (" .", ()),
    )
    assert [boxes for _, boxes in captions[1].pieces] == [(), (), ((0, 0, 1, 1),)]
    assert captions[2].pieces == (("Men [ in hats ] and [hats]", ()),)


words = st.lists(st.sampled_from(["a", "red", "dog", "'s", ",", "."]), min_size=1, max_size=4)


@given(st.lists(st.tuples(words, st.none() | st.integers(0, 5)), min_size=1, max_size=6))
def test_any_sentence_keeps_its_words_and_its_boxes(tmp_path_factory, parts):
    """The reading of the release's own code: words in order; boxes behind the phrases whose entity has some."""
    boxes = {str(n): [(n, n, n + 1, n + 1)] for n in range(3)}
    marked = [" ".join(w) if n is None else f"[/EN#{n}/people {' '.join(w)}]" for w, n in parts]
    (caption,) = read_sentences(sentence_file(tmp_path_factory.mktemp("s"), " ".join(marked) + "\n"), boxes)
    assert caption.text == " ".join(word for w, _ in parts for word in w)
    expected = [(" ".join(w), tuple(boxes[str(n)])) for w, n in parts if n is not None and n < 3]
    assert [(text.strip(), found) for text, found in caption.pieces if found] == expected


XML = box_formats.XML.format(name="1")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda t: t.replace("</size>", ""), r"1\.xml:\d+: malformed XML: mismatched tag"),
        (lambda t: "", r"1\.xml:1: malformed XML: no element found"),
        (lambda t: t.replace("<width>12</width>", ""), r"field 'size/width': element is missing"),
        (lambda t: t.replace("<xmin>1</xmin>", ""), r"field 'bndbox/xmin': element is missing"),
        (
            lambda t: t.replace("<xmin>1</xmin>", "<xmin>one</xmin>"),
            "field 'bndbox/xmin': a whole number is expected, not 'one'",
        ),
        (
            lambda t: t.replace("<xmax>7</xmax>", "<xmax>0</xmax>"),
            "field 'bndbox of 1': the box's corners are the wrong way",
        ),
        (lambda t: t.replace("<name>3</name>", ""), "field 'name': an object without a name"),
        (lambda t: t.replace("<xmin>4</xmin>", "<xmin>99</xmin>").replace("<xmax>10</xmax>", "<xmax>101</xmax>"), None),
    ],
)
def test_annotations_that_do_not_fit(tmp_path, change, problem):
    options = box_formats.flickr30k_entities(tmp_path)
    path = tmp_path / "Annotations" / "00795.xml"
    one = tmp_path / "1.xml"
    one.write_text(change(XML))
    if problem is None:  # well-formed, but not in the picture
        path.write_text(one.read_text())
        with pytest.raises(DataError, match=r"test\.txt:1 field 'boxes': .* outside the picture of 12 x 8"):
            load_task("flickr30k_entities", **options)
        return
    with pytest.raises(DataError, match=problem):
        read_annotation(one)


def test_releases_that_do_not_fit(tmp_path):
    options = box_formats.flickr30k_entities(tmp_path)
    sentences = tmp_path / "Sentences" / "00795.txt"
    sentences.write_text("[/EN#1/people A girl runs\n")
    with pytest.raises(DataError, match=r"00795\.txt:1: the phrase of EN#1 does not end"):
        load_task("flickr30k_entities", **options)
    sentences.write_text("\n")
    with pytest.raises(DataError, match=r"00795\.txt: there are no sentences"):
        load_task("flickr30k_entities", **options)
    sentences.unlink()
    with pytest.raises(DataError, match=r"00795\.txt: file not found"):
        load_task("flickr30k_entities", **options)
    (tmp_path / "test.txt").write_text("00795\n00795\n")
    with pytest.raises(DataError, match=r"test\.txt:2 field 'image': '00795' occurs twice"):
        load_task("flickr30k_entities", **options)
    (tmp_path / "test.txt").write_text("")
    with pytest.raises(DataError, match="the list of images is empty"):
        load_task("flickr30k_entities", **options)
    (tmp_path / "Annotations").rename(tmp_path / "annotations_")
    with pytest.raises(DataError, match="no folder Annotations beside this list"):
        load_task("flickr30k_entities", **options)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda row: row.pop("sentence"), "field 'sentence': field is missing"),
        (lambda row: row.pop("boxes"), "field 'boxes': field is missing"),
        (lambda row: row.pop("boxes_seq"), "field 'boxes_seq': field is missing"),
        (lambda row: row.pop("image_id"), "field 'image_id': field is missing"),
        (lambda row: row["boxes_seq"].pop(), "field 'boxes_seq': 0 groups of boxes for 1 phrases"),
        (
            lambda row: row.update(boxes_seq=[[2]]),
            r"field 'boxes_seq': \[2\] is no list of places in 'boxes' \(0 to 1\)",
        ),
        (lambda row: row.update(boxes_seq=[0]), "field 'boxes_seq': 0 is no list of places"),
        (
            lambda row: row.update(sentence="A <ph_ed>girl<ph_st>"),
            "field 'sentence': <ph_st> and <ph_ed> do not alternate",
        ),
        (lambda row: row.update(sentence="A <ph_st>girl"), "field 'sentence': .* do not alternate"),
        (lambda row: row["boxes"].append([3, 3, 1, 1]), "field 'boxes': the box's corners"),
        (lambda row: row.update(id=0), "field 'id': '0' occurs twice"),
    ],
)
def test_lines_that_do_not_fit(tmp_path, change, problem):
    rows = box_formats.entities_lines(tmp_path)
    change(rows[1])
    file = write_lines(tmp_path / "mine.jsonl", rows)
    with pytest.raises(DataError, match=rf"mine\.jsonl:2 {problem}"):
        load_task("flickr30k_entities", questions=file, root=tmp_path)


def test_lines_from_the_published_parser_are_read_back(tmp_path):
    rows = box_formats.entities_lines(tmp_path)
    task = load_task("flickr30k_entities", questions=write_lines(tmp_path / "a.jsonl", rows), root=tmp_path)
    for query, row in zip(task.queries, rows[::2], strict=True):
        assert [len(group) for group in find_boxes(query.answer)] == [len(group) for group in row["boxes_seq"]]
        plain = row["sentence"].replace("<ph_st>", "").replace("<ph_ed>", "")
        assert without_boxes(query.answer) == plain.replace(" .", ".")
    assert json.loads(json.dumps(task.describe()))["queries"] == 3
