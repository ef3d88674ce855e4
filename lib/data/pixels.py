"""One picture's pixels: decoded, turned upright, made RGB and square."""

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy
from PIL import Image, ImageOps

from lib.runtime.errors import UserError, one_line
from lib.runtime.progress import StepProgress

Image.init()  # AVIF is there from Pillow 11.3 on
FORMATS = tuple(name for name in ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "AVIF") if name in Image.OPEN)
# From heic on not decoded: told as images that cannot be read, since left out in silence they may be most of a dataset.
IMAGE_NAME = re.compile(
    r".\.(jpe?g|jpe|jfif|a?png|bmp|dib|gif|webp|tiff?|p[pgbn]m|avif"
    r"|heic|heics|heif|hif|jxl|jxr|jp2|j2k|jpx|tga|psd|svg|eps|ico|pcx|qoi|exr|hdr|dng|cr2|cr3|crw|nef|arw|orf|pef|raf|rw2)$",
    re.IGNORECASE,
)
LARGEST_IMAGE = 64_000_000  # pixels, declared by the file's header
BITS_PER_SAMPLE = 258  # TIFF's tag
ORIENTATION = 0x0112  # EXIF's tag
RESIZING = "the whole image by Pillow's antialiased bicubic filter; an image of that size keeps its pixels"
BICUBIC = Image.Resampling.BICUBIC


def decode(file: Path | BinaryIO, size: int) -> tuple[numpy.ndarray, list[str]]:
    """The first frame of an encoded image as uint8 [3, size, size], and what had to be converted, in words.

    EXIF orientation is applied, transparency is laid on white, 16 bits keep their upper 8. A ValueError says that it is
    of no format in `FORMATS`, damaged, too large or of a mode without a stated range.
    """
    try:
        if isinstance(file, Path) and not file.is_file():
            raise ValueError("it is a link that leads nowhere, or a device")
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > LARGEST_IMAGE:
                raise ValueError(f"it has {image.width:,} x {image.height:,} pixels; allowed: {LARGEST_IMAGE:,}")
            conversions = [] if image.mode in ("RGB", "RGBA") else [f"{image.mode} to RGB"]
            conversions += ["transparency to white"] * image.has_transparency_data
            image.load()
            # Gray whose white is not known: Pillow gives 16-bit PNG and PPM the full range, and TIFF as it is.
            bits = max(image.tag_v2.get(BITS_PER_SAMPLE, (8,))) if image.format == "TIFF" else 8  # type: ignore
            signed = image.mode == "I" and image.format not in ("PNG", "PPM")
            if image.mode == "F" or signed or bits not in (1, 2, 4, 8, 16):
                how = "save it with 8 or 16 bits, unsigned"
                raise ValueError(f"its pixels (mode {image.mode}) have no stated range; {how}")
            upright: Image.Image = image
            with suppress(Exception):  # the pixels have loaded, so what is damaged is only the EXIF block
                if image.getexif().get(ORIENTATION) in range(2, 9):
                    upright = ImageOps.exif_transpose(image)
            conversions += ["turned upright by its EXIF tag"] * (upright is not image)
            return square(_rgb(upright), size), conversions
    except Image.UnidentifiedImageError:
        raise ValueError(f"it is none of {', '.join(FORMATS)}") from None
    except Exception as error:  # decoders of damaged files raise errors of many kinds
        raise ValueError(one_line(error)) from error


def square(image: Image.Image, size: int, resample: Image.Resampling = BICUBIC) -> numpy.ndarray:
    """An RGB image as uint8 [3, size, size]; one of that size already keeps its pixels exactly."""
    if image.size != (size, size):
        image = image.resize((size, size), resample)
    return numpy.asarray(image).transpose(2, 0, 1)


def square_all(images: numpy.ndarray, size: int, resample: Image.Resampling = BICUBIC) -> numpy.ndarray:
    """uint8 gray [N, H, W] or RGB [N, 3, H, W] as RGB uint8 [N, 3, size, size]."""
    if images.ndim == 3:
        images = numpy.broadcast_to(images[:, None], (len(images), 3, *images.shape[1:]))
    if images.shape[2:] == (size, size):
        return numpy.ascontiguousarray(images)
    squares = blank(len(images), size)
    with StepProgress(f"resizing {len(images):,} images", 100) as progress:
        for index, image in enumerate(images):
            squares[index] = square(Image.fromarray(numpy.ascontiguousarray(image.transpose(1, 2, 0))), size, resample)
            progress.reach((index + 1) / len(images))
    return squares


def blank(count: int, size: int, size_name: str = "image_size in params.yaml") -> numpy.ndarray:
    """Room for uint8 [count, 3, size, size], or what to lower where that exceeds the machine's memory."""
    wanted, memory = count * 3 * size * size, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if wanted > memory:
        needs = f"{count:,} images of {size}x{size} need {wanted / 1e9:.1f} GB of memory"
        raise UserError(f"{needs}, this machine has {memory / 1e9:.1f} GB; lower {size_name}")
    return numpy.empty((count, 3, size, size), numpy.uint8)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        image = Image.fromarray((numpy.asarray(image) >> 8).astype(numpy.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
