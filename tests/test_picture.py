"""Pictures: every kind of good, odd and bad image file."""

from __future__ import annotations

import io
import os
import random
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from kshot.errors import BadImage, DataError
from kshot.picture import (
    MAX_PIXELS,
    ArchivePicture,
    BytesPicture,
    DrawnPicture,
    FilePicture,
    as_picture,
    decode,
    open_archive,
)

RED, BLUE = (255, 0, 0), (0, 0, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int = 40, height: int = 30) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def png_of_size(width: int, height: int) -> bytes:
    """A PNG of about 100 bytes that claims to be of this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_keep_every_pixel(kind):
    image = noise()
    assert np.array_equal(np.asarray(decode(encoded(image, kind), "x")), np.asarray(image))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation):
    upright = Image.new("RGB", (6, 4), "white")
    upright.paste(RED, (0, 0, 2, 1))  # a mark in the upper left corner
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = decode(encoded(stored, exif=exif), "x")
    assert shown.size == (6, 4)
    assert np.array_equal(np.asarray(shown), np.asarray(upright))


def test_16_bit_values_are_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 256).reshape(16, 16).astype(np.uint16)
    shown = np.asarray(decode(encoded(Image.fromarray(ramp)), "x"))[..., 0].astype(int)
    assert (shown.min(), shown.max()) == (0, 255)
    assert np.abs(shown - ramp / 257).max() <= 1


def test_floating_point_values_span_black_to_white():
    ramp = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    shown = np.asarray(decode(encoded(Image.fromarray(ramp), "TIFF"), "x"))
    assert (shown.min(), shown.max()) == (0, 255)


def test_cmyk_is_converted():
    shown = decode(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95), "x")
    assert np.abs(np.array(shown.getpixel((4, 4))) - RED).max() < 6


def palette_image() -> Image.Image:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([*RED, *BLUE] + [0] * 762)
    image.putpixel((1, 1), 1)
    return image


def test_palette_is_looked_up():
    shown = decode(encoded(palette_image()), "x")
    assert (shown.getpixel((0, 0)), shown.getpixel((1, 1))) == (RED, BLUE)


@pytest.mark.parametrize(
    "data",
    [
        encoded(palette_image(), transparency=0),
        encoded(Image.new("RGBA", (4, 4), (1, 2, 3, 0))),
        encoded(Image.new("LA", (4, 4), (7, 0))),
        encoded(Image.new("RGB", (4, 4), (1, 2, 3)), transparency=(1, 2, 3)),
    ],
    ids=["palette", "RGBA", "LA", "RGB with a transparent colour"],
)
def test_transparency_is_laid_on_white(data):
    assert decode(data, "x").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})])
def test_of_an_animation_the_first_frame_is_taken(kind, options):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert decode(data, "x").getpixel((0, 0)) == RED


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "empty"),
        (b"<html>404</html>", "not an image"),
        (encoded(noise())[:200], "truncated"),
        (encoded(noise(200, 200), "JPEG")[:3000], "truncated"),
        (png_of_size(50_000, 50_000), f"more than {MAX_PIXELS:,} pixels"),
        (png_of_size(2**31 - 1, 2**31 - 1), "pixels"),
    ],
    ids=["zero bytes", "no image", "truncated PNG", "truncated JPEG", "bomb", "larger bomb"],
)
def test_bad_files_are_one_line_errors_that_name_the_file(tmp_path, data, problem):
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with pytest.raises(BadImage, match=problem) as caught:
        FilePicture(path).load()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.file == str(path)


def test_the_limit_holds_where_pillows_own_is_switched_off(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(BadImage, match="50000 x 50000"):
        decode(png_of_size(50_000, 50_000), "x")


def test_a_missing_file_and_a_folder_are_errors(tmp_path):
    with pytest.raises(BadImage, match="not found"):
        FilePicture(tmp_path / "none.jpg").load()
    with pytest.raises(BadImage, match="cannot be read"):
        FilePicture(tmp_path).load()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_bytes_give_an_image_or_a_bad_image():
    chance = random.Random(0)
    image, exif = noise(24, 18), Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    originals = [encoded(image, kind) for kind in ("GIF", "TIFF", "BMP", "PPM", "ICO", "TGA", "PCX")]
    originals += [encoded(image, kind, exif=exif) for kind in ("PNG", "JPEG", "WEBP")]
    bad = 0
    for _ in range(600):
        data = bytearray(chance.choice(originals))
        for _ in range(chance.choice((1, 2, 8))):
            data[chance.randrange(min(len(data), chance.choice((64, len(data)))))] = chance.randrange(256)
        data = data[: chance.randrange(len(data) + 1)] if chance.random() < 0.2 else data
        try:
            assert decode(bytes(data), "x").mode == "RGB"
        except BadImage:
            bad += 1
    assert 50 < bad < 600  # both happen


def test_pictures_are_lazy(tmp_path):
    path = tmp_path / "later.png"
    picture = as_picture(path)
    path.write_bytes(encoded(noise()))
    assert picture.load().size == (40, 30)


def test_equal_content_has_equal_digests_whatever_the_place(tmp_path):
    data = encoded(noise())
    (tmp_path / "a.png").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("in/c.png", data)
    pictures = [FilePicture(tmp_path / "a.png"), ArchivePicture(tmp_path / "b.zip", "in/c.png"), BytesPicture(data)]
    assert len({p.digest for p in pictures}) == 1
    assert BytesPicture(encoded(noise(30, 40))).digest != pictures[0].digest


def test_equality_is_by_place_and_reads_nothing(tmp_path):
    path = tmp_path / "absent.png"
    assert FilePicture(path) == FilePicture(str(path))
    assert len({FilePicture(path), FilePicture(str(path)), FilePicture(tmp_path / "b.png")}) == 2
    assert FilePicture(path) != ArchivePicture(path, "x")
    assert BytesPicture(b"1") == BytesPicture(b"1") != BytesPicture(b"2")


def test_archives(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.png", encoded(noise()))
    assert ArchivePicture(path, "x.png").load().size == (40, 30)
    with pytest.raises(BadImage, match="no such image"):
        ArchivePicture(path, "y.png").load()
    with pytest.raises(DataError, match="not found"):
        open_archive(tmp_path / "none.zip")
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="not a readable zip"):
        ArchivePicture(damaged, "x.png").load()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_reads_archives_through_a_handle_of_its_own(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.png", encoded(noise()))
    here = open_archive(path)
    assert open_archive(path) is here
    child = os.fork()
    if child == 0:
        os._exit(0 if open_archive(path) is not here else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_images_in_memory_and_drawings():
    image = noise()
    picture = as_picture(image)
    digest = picture.digest
    image.putpixel((0, 0), (1, 2, 3))  # the picture keeps what it was given
    assert as_picture(picture) is picture
    assert DrawnPicture(noise, "drawn").digest == digest
    assert as_picture(noise().convert("L")).load().mode == "RGB"
    with pytest.raises(DataError, match="cannot make a picture of int"):
        as_picture(3)
