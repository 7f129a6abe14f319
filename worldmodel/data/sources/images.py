"""Images in a folder, with sub-folders as classes, without classes, or with captions."""

import itertools
import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from worldmodel.data.records import HELD_OUT_EVERY, Item
from worldmodel.data.sources.base import Source, check_folder, files_below, image_item
from worldmodel.errors import DataError
from worldmodel.types import NO_ACTION, Spec, plain_name
from worldmodel.util.formats import unreadable
from worldmodel.util.ranges import Pixels, Text, Whole

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WebP")
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}
"""Names of sub-folders that are parts of a data set."""

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
"""Modes that are converted to 8-bit RGB; CMYK without its colour profile, approximately."""

WORDS = ("LOC_synset_mapping.txt", "words.txt")
"""Files with the class names of ImageNet's folders: ``n01440764 tench, Tinca tinca``."""

MOST_LETTERS = 1000  # of a caption; longer ones are cut
ONE_CLASS = "image"  # the class of all images in a folder without classes
SMALLEST_CROP = 0.4  # side of the smallest random square, as a part of the shorter side of the picture


class ImageFolder(Source):
    """All images below a folder as ``size`` × ``size`` RGB.

    The top-level sub-folder of an image is its class; images outside sub-folders have none. A file of :data:`WORDS` in
    the folder or next to it provides class names. The first line of a text file of the same name (``0001.png``,
    ``0001.txt``) is a caption, which replaces the class, except for numbers alone (boxes of a detector) and with
    ``captions=False``. Every tenth file is held out, counted over all files in sorted order. ``crops`` random squares
    of each of the other files follow as further images, half of them mirrored: their sides are from
    :data:`SMALLEST_CROP` to the whole of the shorter side, and the same in every collection. Raises
    :class:`DataError` without images, and if all sub-folders are called like splits (train, val).
    """

    def __init__(self, path: Text, size: Pixels, name: Text = "images", captions: bool = True, crops: Whole = 0):
        folder = check_folder(path, "a folder of pictures")
        self._files = sorted(files_below(folder, SUFFIXES), key=lambda file: file.relative_to(folder).parts)
        if not self._files:
            raise DataError(f"there is no picture in {folder}; known are {', '.join(SUFFIXES)}")
        within = [file.relative_to(folder).parts for file in self._files]
        folders = sorted({parts[0] for parts in within if len(parts) > 1})
        if folders and {own.lower() for own in folders} <= SPLITS:
            reason = f"the sub-folders of {folder} are {', '.join(folders)}, which are no classes"
            remedy = f"source.path={folder / folders[0]} reads one of them, whose sub-folders are the classes"
            raise DataError(f"{reason}; {remedy}")
        numbers = {own: number for number, own in enumerate(folders)}
        beside = NO_ACTION if folders else 0  # the class of images outside sub-folders
        labels = [numbers[parts[0]] if len(parts) > 1 else beside for parts in within]
        names = class_names(folders, folder) or (ONE_CLASS,)
        texts = {number: text for number, file in enumerate(self._files) if captions and (text := read_caption(file))}
        if texts:
            classes = [names[label] if folders and label >= 0 else "" for label in labels]
            called = [texts.get(number, own) for number, own in enumerate(classes)]
            names = tuple(sorted({name for name in called if name}))
            known = {name: number for number, name in enumerate(names)}
            labels = [known.get(name, NO_ACTION) for name in called]
        self._labels, self._size = labels, size
        # Keys include the folder's name, because two folders may both contain 0001.png.
        self.keys = ["/".join((folder.name, *parts)) for parts in within]
        training = [number for number in range(len(self._files)) if not _held_out(number)]
        self._crops = [(number, crop) for number in training for crop in range(crops)]
        self.keys += [f"{self.keys[number]}#{crop}" for number, crop in self._crops]
        self.spec = Spec(name, (3, size, size), names, rate=1.0)

    def read(self, index: int) -> Item:
        if index < len(self._files):
            image = read_image(self._files[index], self._size)
            return image_item(image, self._labels[index], _held_out(index), self.keys[index])
        number, crop = self._crops[index - len(self._files)]
        image = read_image(self._files[number], self._size, np.random.default_rng((number, crop)))
        return image_item(image, self._labels[number], False, self.keys[index])


def _held_out(number: int) -> bool:
    return number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


def read_image(file: Path, size: int, random: np.random.Generator | None = None) -> np.ndarray:
    """One picture, upright, cut to the square in its middle, or to a random one, and resized: (3, size, size) uint8.

    Grey pictures and those with a palette become RGB; transparent parts are blended with white. Raises
    :class:`DataError` for a file that is damaged, cut off, no picture, or of more than 8 bits a channel.
    """
    try:
        with Image.open(file) as opened:
            if opened.mode not in MODES:
                raise DataError(f"{file} is of mode {opened.mode}; convert it to 8-bit RGB")
            image = _to_rgb(ImageOps.exif_transpose(opened))
    # The errors that decoders raise for damaged files and other formats.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, Image.DecompressionBombError) as error:
        reason = "it is no picture" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"{file} {unreadable(file, reason, FORMATS, 'convert it to PNG')}") from error
    side = min(image.size)
    left, top = ((extent - side) // 2 for extent in image.size)
    if random is not None:
        side = round(side * random.uniform(SMALLEST_CROP, 1))
        left, top = (int(random.integers(extent - side + 1)) for extent in image.size)
        image = ImageOps.mirror(image) if random.random() < 0.5 else image
    image = image.crop((left, top, left + side, top + side))
    if side != size:
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def class_names(folders: list[str], folder: Path) -> tuple[str, ...]:
    """A name for each class: the first word for its folder in a file of :data:`WORDS`, else the folder's own name.

    A name that is taken gets a number.
    """
    words = _words(folder)
    names: list[str] = []
    for own in folders:
        stem = plain_name(words.get(own, own)) or "unnamed"
        numbered = (f"{stem}_{number}" for number in itertools.count(2))
        names.append(next(name for name in itertools.chain([stem], numbered) if name not in names))
    return tuple(names)


def read_caption(picture: Path) -> str:
    """The caption of a picture as a name, from the first line of the text file beside it; empty without one, and for
    numbers alone."""
    try:
        with picture.with_suffix(".txt").open(encoding="utf-8", errors="replace") as lines:
            line = lines.readline(MOST_LETTERS)
    except OSError:
        return ""
    try:
        np.array(re.split(r"[\s,;]+", line.strip(" \r\n,;")), float)
    except ValueError:
        return plain_name(line)
    return ""


def _words(folder: Path) -> dict[str, str]:
    """The class names in a file of :data:`WORDS` in the folder or next to it: n01440764 → tench."""
    for file in (place / name for place in (folder, folder.parent) for name in WORDS):
        if file.is_file():
            lines = [line.split(maxsplit=1) for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
            return {parts[0]: parts[1].split(",")[0].strip() for parts in lines if len(parts) == 2}
    return {}
