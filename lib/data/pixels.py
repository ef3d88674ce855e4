"""One picture's pixels: decoded, turned upright, made RGB and square."""

import os
from io import BytesIO

import numpy
from PIL import Image, ImageOps

from lib.runtime.errors import UserError

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"])
LARGEST_IMAGE = 64_000_000  # pixels, declared by the file's header
BITS_PER_SAMPLE = 258  # TIFF's tag
ORIENTATION = 0x0112  # EXIF's tag
RESIZING = "the whole image by Pillow's antialiased bicubic filter; an image of that size keeps its pixels"


def decode(content: bytes, size: int) -> numpy.ndarray:
    """The pixels that `convert` gives, uint8 [3, size, size]."""
    return convert(content, size)[0]


def convert(content: bytes, size: int) -> tuple[numpy.ndarray, list[str]]:
    """The first frame of an encoded image as uint8 [3, size, size], and what had to be converted, in words.

    EXIF orientation is applied, transparency is laid on white, 16 bits keep their upper 8. Gray of 12 or
    32 bits, signed or floating-point does not say which value is white, and is refused.

    Raises:
        ValueError: not an image of a format in `FORMATS`, damaged, too large or of a mode without a stated range.
        UserError: this machine's memory does not suffice.
    """
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > LARGEST_IMAGE:
                raise ValueError(f"it has {image.width:,} x {image.height:,} pixels; allowed: {LARGEST_IMAGE:,}")
            conversions = _conversions(image)
            image.load()
            _check_range(image)
            upright = _upright(image)
            turned = ["turned upright by its EXIF tag"] if upright is not image else []
            return square(_rgb(upright), size), conversions + turned
    except Image.UnidentifiedImageError:
        raise ValueError(f"it is none of {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise ValueError(f"its header declares more than {LARGEST_IMAGE:,} pixels, the most allowed") from None
    except MemoryError:
        raise UserError(
            "this machine's memory does not suffice for one of the images; make the largest smaller, or "
            "give the machine more memory"
        ) from None
    except Exception as error:  # decoders of damaged files raise errors of many kinds
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def square(image: Image.Image, size: int, resample: Image.Resampling = Image.Resampling.BICUBIC) -> numpy.ndarray:
    """An RGB image as uint8 [3, size, size]; one of that size already keeps its pixels exactly."""
    if image.size != (size, size):
        image = image.resize((size, size), resample)
    return numpy.asarray(image).transpose(2, 0, 1)


def square_all(
    images: numpy.ndarray, size: int, resample: Image.Resampling = Image.Resampling.BICUBIC
) -> numpy.ndarray:
    """uint8 gray [N, H, W] or RGB [N, 3, H, W] as RGB uint8 [N, 3, size, size]."""
    if images.ndim == 3:
        images = numpy.broadcast_to(images[:, None], (len(images), 3, *images.shape[1:]))
    if images.shape[2:] == (size, size):
        return numpy.ascontiguousarray(images)
    squares = blank(len(images), size)
    for index, image in enumerate(images):
        squares[index] = square(Image.fromarray(numpy.ascontiguousarray(image.transpose(1, 2, 0))), size, resample)
    return squares


def blank(count: int, size: int) -> numpy.ndarray:
    """Room for uint8 [count, 3, size, size], refused when it exceeds the machine's memory."""
    wanted = count * 3 * size * size
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if wanted > memory:
        raise UserError(
            f"{count:,} images of {size}x{size} need {wanted / 1e9:.1f} GB of memory, this machine has "
            f"{memory / 1e9:.1f} GB; lower image_size in params.yaml"
        )
    return numpy.empty((count, 3, size, size), numpy.uint8)


def _check_range(image: Image.Image) -> None:
    """Refuse gray values whose white is not known: Pillow gives 16-bit PNG and PPM the full range, TIFF as it is."""
    tiff_bits = max(image.tag_v2.get(BITS_PER_SAMPLE, (8,))) if image.format == "TIFF" else 8
    unknown = image.mode == "I" and image.format not in ("PNG", "PPM")
    if image.mode == "F" or unknown or tiff_bits not in (1, 2, 4, 8, 16):
        raise ValueError(
            f"its pixels (Pillow's mode {image.mode}, {image.format}) have no stated range; save it with "
            "8 or 16 bits, unsigned"
        )


def _conversions(image: Image.Image) -> list[str]:
    """What turning an opened, not yet loaded image into 8-bit RGB leaves out or makes up, in words."""
    names = {"1": "gray", "L": "gray", "LA": "gray", "P": "palette", "PA": "palette", "RGB": "", "RGBA": ""}
    name = "gray" if image.mode.startswith("I") else names.get(image.mode, image.mode)
    words = [f"{name} to RGB"] if name else []
    layout = image.tile[0].args if image.tile else ""  # like RGB;16B; of a PPM its largest value
    deep = image.mode.startswith("I") or ";16" in str(layout)
    if deep or (image.format == "PPM" and isinstance(layout, tuple) and layout[-1] > 255):
        words.append("16 bits to 8")
    if image.has_transparency_data:
        words.append("transparency to white")
    return words


def _upright(image: Image.Image) -> Image.Image:
    """``image`` itself where its EXIF tag does not turn it, or is damaged."""
    try:
        return ImageOps.exif_transpose(image) if image.getexif().get(ORIENTATION) in range(2, 9) else image
    except Exception:  # the pixels have loaded, so what is damaged is only the EXIF block
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        image = Image.fromarray((numpy.asarray(image) >> 8).astype(numpy.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
