"""Images of every kind: decoded, turned upright, made RGB and square, and what was converted is stated."""

import io
import struct

import numpy
import pytest
import torch
from PIL import Image

from lib.data.folders import read_folders
from lib.data.pixels import blank, decode
from tests.faults.refusals import refused
from tests.make_archives import encoded, picture, png, two_level, write_folder


def pixels_of(content: bytes) -> numpy.ndarray:
    return decode(io.BytesIO(content), 32)[0]


EXIF, ALPHA = Image.Exif(), "transparency to white"
EXIF[0x0112] = 6
TURNED, PALETTE, DEEP = encoded(picture(1), exif=EXIF), Image.fromarray(picture(6)).convert("P"), bytes(range(256)) * 2
# Pictures of other kinds than 8-bit RGB, and the conversions that are stated.
UNUSUAL = {
    "CMYK.jpg": (encoded(Image.new("CMYK", (9, 9), (0, 255, 255, 0)), "JPEG"), ["CMYK to RGB"]),
    "palette.png": (encoded(PALETTE), ["P to RGB"]),
    "clear palette.png": (encoded(PALETTE, transparency=0), ["P to RGB", ALPHA]),
    "16-bit gray.png": (png(4, 4, 0, 16, b"".join(b"\0" + DEEP[8 * n : 8 * n + 8] for n in range(4))), ["I;16 to RGB"]),
    "16-bit color.png": (png(4, 4, 2, 16, b"".join(b"\0" + DEEP[24 * n : 24 * n + 24] for n in range(4))), []),
    "alpha.webp": (encoded(Image.new("RGBA", (9, 9), (9, 9, 9, 0)), "WEBP"), [ALPHA]),
    "gray with alpha.png": (encoded(Image.new("LA", (9, 9))), ["LA to RGB", ALPHA]),
    "1x5000.bmp": (encoded(picture(1, 1, 5000), "BMP"), []),
    "jpeg.jfif": (encoded(picture(3, 64, 64), "JPEG"), []),
    "turned.png": (TURNED, ["turned upright by its EXIF tag"]),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_a_picture_of_another_kind_is_converted_and_that_is_stated(tmp_path, name, capsys):
    content, expected = UNUSUAL[name]
    path = write_folder(tmp_path / "pets", {**two_level(), f"train/dog/{name}": content})
    raw = read_folders(str(path), 32)
    assert raw.provenance["converted"] == dict.fromkeys(sorted(expected), 1)
    assert raw.provenance["resized"].startswith("the whole image") and len(raw.train_labels) == 9
    said = capsys.readouterr().out
    assert said.startswith("converted: ") == bool(expected) and all(f"{word} (1)" in said for word in expected)


def test_modes_become_rgb():
    gray = picture(5, 32, 32)[..., 0]
    expected = numpy.repeat(gray[None], 3, axis=0)
    assert numpy.array_equal(pixels_of(encoded(Image.fromarray(gray))), expected)
    deep = Image.fromarray(gray.astype(numpy.uint16) * 256 + 7)
    assert numpy.array_equal(pixels_of(encoded(deep)), expected)
    assert numpy.array_equal(pixels_of(encoded(deep, "TIFF")), expected)
    clear = Image.new("RGBA", (32, 32), (200, 10, 10, 0))
    assert (pixels_of(encoded(clear)) == 255).all()
    palette = Image.fromarray(picture(6)).convert("P")
    assert numpy.array_equal(pixels_of(encoded(palette)), numpy.asarray(palette.convert("RGB")).transpose(2, 0, 1))
    ink = Image.new("CMYK", (32, 32), (0, 255, 255, 0))
    red, green, blue = pixels_of(encoded(ink, "TIFF")).reshape(3, -1).mean(1)
    assert red > 200 and green < 50 and blue < 50


def test_gray_without_a_stated_range_is_refused_in_tiff_and_scaled_in_pgm():
    gray16 = encoded(Image.new("I;16", (32, 32), 4095), "TIFF")
    twelve = gray16.replace(struct.pack("<HHIHH", 258, 3, 1, 16, 0), struct.pack("<HHIHH", 258, 3, 1, 12, 0))
    assert twelve != gray16
    signed, floats = (
        encoded(Image.fromarray(picture(5)[..., 0].astype(kind)), "TIFF") for kind in ("int32", "float32")
    )
    for content in (twelve, signed, floats):
        with pytest.raises(ValueError, match="no stated range; save it with 8 or 16 bits"):
            pixels_of(content)
    gray = numpy.full((32, 32), 4095, ">u2")
    assert (pixels_of(b"P5 32 32 4095\n" + gray.tobytes()) == 255).all()
    assert (pixels_of(b"P5 32 32 65535\n" + gray.tobytes()) == 15).all()


def test_orientation_is_respected_and_damaged_exif_does_not_cost_the_image():
    upright = pixels_of(encoded(numpy.rot90(picture(1), -1).copy()))
    assert numpy.array_equal(pixels_of(TURNED), upright)
    assert not numpy.array_equal(pixels_of(encoded(picture(1))), upright)
    damaged = encoded(picture(8), exif=b"Exif\0\0II*\0garbage")
    with pytest.warns(UserWarning, match="Corrupt EXIF"):
        assert numpy.array_equal(pixels_of(damaged), picture(8).transpose(2, 0, 1))


def test_resizing_is_antialiased_bicubic_of_the_whole_image():
    checkers = ((numpy.indices((128, 64)).sum(0) % 2) * 255).astype(numpy.uint8)
    small = pixels_of(encoded(Image.fromarray(checkers)))
    assert small.shape == (3, 32, 32) and abs(small.astype(int) - 127).max() <= 3
    image = picture(7, 50, 90)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None].float(), (32, 32), mode="bicubic", antialias=True
    )
    expected = expected.round().clamp(0, 255)[0].numpy()
    assert abs(pixels_of(encoded(image)).astype(float) - expected).max() <= 2


def test_more_than_the_memory_is_refused():
    refused(lambda: blank(10**9, 512), "lower image_size")
