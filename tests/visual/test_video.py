"""Frames of videos by their exact numbers."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from kshot.errors import BadImage, DataError, MissingExtra
from kshot.visual import video
from kshot.visual.grammar import sentence_plan
from kshot.visual.video import VideoFrame, VideoTrack, count_frames, read_frames
from tests.visual.sentence_data import make_video, number_of

pytest.importorskip("av")

KINDS = {
    "b_frames.mp4": {"codec": "libx264", "g": "12", "bf": "3"},
    "matroska.mkv": {"codec": "libx264", "g": "50"},
    "part2.avi": {"codec": "mpeg4", "g": "9", "bf": "2"},
    "mpeg2.mpg": {"codec": "mpeg2video", "g": "10", "bf": "2"},
    "vp8.webm": {"codec": "libvpx", "g": "15"},
    "stream.ts": {"codec": "libx264", "g": "10"},
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    return {name: str(make_video(root / name, 48, **options)) for name, options in KINDS.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_those_of_their_numbers(videos, kind):
    path = videos[kind]
    assert count_frames(path) == 48
    assert [number_of(image) for image in read_frames(path, range(48))] == list(range(48))
    for wanted in ([0], [47], [13, 14], [5, 29, 46], [24, 25, 26], [11, 12, 36]):
        assert [number_of(image) for image in read_frames(path, wanted)] == wanted


def test_a_seek_beyond_the_frame_is_made_good(videos, monkeypatch):
    """Containers may land after the time that was asked for; then all is decoded from the beginning."""
    opened = video._opened

    def overshooting(path):
        class Container:
            def __init__(self, inner):
                self.inner = inner

            def seek(self, stamp, **options):
                self.inner.seek(stamp * 2, **options)

            def __getattr__(self, name):
                return getattr(self.inner, name)

        from contextlib import contextmanager

        @contextmanager
        def wrapped():
            with opened(path) as (container, stream):
                yield Container(container), stream

        return wrapped()

    monkeypatch.setattr(video, "_opened", overshooting)
    assert [number_of(image) for image in read_frames(videos["b_frames.mp4"], [20, 22])] == [20, 22]


def test_the_frames_of_a_sentence_are_decoded_in_one_go(videos, monkeypatch):
    calls = []
    read = video.read_frames
    monkeypatch.setattr(video, "read_frames", lambda *given: calls.append(given) or read(*given))
    video._decoded.cache_clear()
    track = VideoTrack("clip.mp4", videos["b_frames.mp4"], 48)
    ids, pictures = zip(*track.at([30, 10, 20]), strict=True)
    assert ids == ("clip.mp4#30", "clip.mp4#10", "clip.mp4#20")
    assert [number_of(picture.load()) for picture in pictures] == [30, 10, 20]
    assert len(calls) == 1
    assert len({picture.digest for picture in pictures}) == 3
    again = VideoFrame(videos["b_frames.mp4"], (3, 10), 1)
    assert again == pictures[1]
    assert hash(again) == hash(pictures[1])
    assert again.digest == pictures[1].digest
    pictures[0].load().paste(0, (0, 0, 9, 9))  # what a caller does to a frame is not seen by the next
    assert np.asarray(pictures[0].load()).min() > 0


def test_threads_wait_for_the_one_that_decodes(videos, monkeypatch):
    calls = []
    read = video.read_frames
    monkeypatch.setattr(video, "read_frames", lambda *given: calls.append(given) or read(*given))
    video._decoded.cache_clear()
    pictures = [picture for _, picture in VideoTrack("clip", videos["b_frames.mp4"], 48).at(range(2, 34, 2))]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda picture: number_of(picture.load()), pictures)) == list(range(2, 34, 2))
    assert len(calls) == 1


def test_a_digest_is_of_the_file_s_content_and_decodes_nothing(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(video, "read_frames", None)
    path = tmp_path / "copy.mp4"
    path.write_bytes(Path(videos["b_frames.mp4"]).read_bytes())
    frame, copy = VideoFrame(videos["b_frames.mp4"], (3, 10), 1), VideoFrame(str(path), (10,), 0)
    assert frame.digest == copy.digest != VideoFrame(str(path), (3,), 0).digest
    path.write_bytes(b"something else")
    assert copy.digest != frame.digest
    path.unlink()
    with pytest.raises(BadImage, match=r"copy\.mp4: video file cannot be read"):
        _ = copy.digest


def test_sentences_of_videos(videos, tmp_path):
    root = tmp_path / "clips"
    make_video(root / "a" / "long.MP4".lower(), 48)
    make_video(root / "short.mp4", 9)
    (root / "broken.mp4").write_bytes(b"\0\0\0\x20ftypisom" + b"\0" * 200)
    (root / "empty.mkv").write_bytes(b"")
    (root / "notes.txt").write_text("")
    plan = sentence_plan("video", folder=root, strides=[2, 30], epochs=2)
    assert len(plan) == 4
    skipped = {source.rpartition("/")[2]: reason.partition(":")[0] for source, reason in plan.skipped}
    assert skipped == {
        "short.mp4": "too short",
        "broken.mp4": "broken",
        "empty.mkv": "broken",
        "notes.txt": "not of the kind by its extension",
    }
    for sentence, stride in zip(plan, [2, 3, 2, 3], strict=True):
        numbers = [int(source.rpartition("#")[2]) for source in sentence.sources]
        assert {b - a for a, b in itertools.pairwise(numbers)} == {stride}
        assert sentence.sources[0].startswith("a/long.mp4#")
        assert [number_of(picture.load()) for picture in sentence.pictures] == numbers
    with pytest.raises(DataError, match=r"broken\.mp4: broken|no video"):
        sentence_plan("video", folder=root, on_bad="error")
    with pytest.raises(DataError, match=r"no sequence can be used.*at least 49 frames"):
        sentence_plan("video", folder=root, images=49)


def test_a_truncated_video_is_broken(videos, tmp_path):
    data = Path(videos["b_frames.mp4"]).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(BadImage, match=r"truncated: \d+ of 48|damaged at frame"):
        count_frames(str(tmp_path / "cut.mp4"))
    (tmp_path / "head.mp4").write_bytes(data[:300])
    with pytest.raises(BadImage, match=r"cut off|cannot be decoded"):
        count_frames(str(tmp_path / "head.mp4"))


def test_frames_that_are_not_there(videos, tmp_path):
    with pytest.raises(BadImage, match="48 frames, none of number 48"):
        read_frames(videos["b_frames.mp4"], [3, 48])
    with pytest.raises(BadImage, match="not found"):
        count_frames(str(tmp_path / "none.mp4"))
    import av

    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(BadImage, match="sound only"):
        count_frames(str(tmp_path / "sound.mp4"))


def test_frames_damaged_inside_are_errors(tmp_path):
    """Decoders patch over what is missing; a patched frame must not become data."""
    path = make_video(tmp_path / "v.mp4", 40, g="40")
    data = bytearray(path.read_bytes())
    start = data.find(b"mdat") + 800
    rng = np.random.default_rng(0)
    data[start : start + 600] = rng.integers(0, 256, 600, dtype=np.uint8).tobytes()
    path.write_bytes(data)
    with pytest.raises(BadImage, match=r"v\.mp4"):
        read_frames(str(path), range(40))


@pytest.mark.parametrize(("rotation", "corner"), [(0, (0, 0)), (-90, (3, 0)), (90, (0, 5)), (180, (5, 3))])
def test_frames_are_upright(rotation, corner):
    """A telephone's video is stored lying; its matrix says by how much the frame is to be turned, against the clock."""
    stored = Image.new("RGB", (6, 4))
    stored.putpixel((0, 0), (255, 0, 0))
    image = video._image(SimpleNamespace(is_corrupt=False, to_image=lambda: stored, rotation=rotation), "v.mp4", 0)
    assert image.size == ((4, 6) if rotation % 180 else (6, 4))
    assert image.getpixel(corner) == (255, 0, 0)


def test_without_the_extra(monkeypatch):
    import builtins

    real = builtins.__import__

    def refuse(name, *rest, **more):
        if name == "av":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtra, match=r"kshot\[video\]"):
        count_frames("v.mp4")
