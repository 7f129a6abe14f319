"""Drawing: colours, text, and the icons of actions."""

import functools
import math

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

PAPER: Colour = (20, 22, 27)  # background
RAIL: Colour = (48, 52, 61)  # unfilled part of the progress line
DIM: Colour = (136, 143, 156)  # secondary text
INK: Colour = (232, 235, 240)  # text and icons
SEEN: Colour = (94, 176, 239)  # seen frames
DREAMT: Colour = (250, 172, 72)  # dreamt frames

OVERSAMPLE = 8  # factor by which icons are drawn larger and then reduced, for smooth edges
TURNS = ("turn", "rotate")
FILLERS = ("move", "go", "walk", "look", "step")
FIRE = ("fire", "shoot", "attack")
IDLE = ("noop", "no", "op", "nop", "idle", "nothing", "stay", "wait", "none", "still")
DIRECTIONS = {  # name → (right, down)
    "forward": (0, -1), "forwards": (0, -1), "up": (0, -1), "north": (0, -1), "ahead": (0, -1),
    "backward": (0, 1), "backwards": (0, 1), "back": (0, 1), "down": (0, 1), "south": (0, 1),
    "left": (-1, 0), "west": (-1, 0), "right": (1, 0), "east": (1, 0),
}  # fmt: skip


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own outline font at a size in pixels."""
    return ImageFont.load_default(size)


def write(
    canvas: Image.Image, xy: tuple[float, float], text: str, size: int, colour: Colour, anchor: str, width: float
) -> None:
    """Write one line at ``xy`` (Pillow's anchors), shortened with … to at most ``width`` pixels."""
    draw, kept = ImageDraw.Draw(canvas), text
    while kept and draw.textlength(kept, font(size)) > width:
        kept = kept[:-2] + "…" if len(kept) > 2 else ""
    draw.text(xy, kept, colour, font(size), anchor=anchor)


def text_width(text: str, size: int) -> int:
    """Width of a line in pixels."""
    return math.ceil(font(size).getlength(text))


@functools.cache
def icon(name: str, size: int) -> Image.Image | None:
    """Mask (mode L, ``size`` × ``size``) of the icon of an action; None when there is no icon for the name.

    Arrows for directions (``forward``, ``left``, ``UPRIGHT``, ``move_back``), bent arrows for turns (``turn_left``),
    a dot for doing nothing, a ring for firing, an arrow with a ring for both (``UPFIRE``).
    """
    words = known_words(name)
    if words is None:
        return None
    big = size * OVERSAMPLE
    mask = Image.new("L", (big, big))
    draw = ImageDraw.Draw(mask)
    right, down = (sum(DIRECTIONS[word][axis] for word in words if word in DIRECTIONS) for axis in (0, 1))
    fires = any(word in FIRE for word in words)
    if (right, down) == (0, 0):
        _ring(draw, big, 0.5, 0.5, 0.26) if fires else _circle(draw, big, 0.5, 0.5, 0.13, fill=255)
    elif any(word in TURNS for word in words) and right:
        _bent_arrow(draw, big)
        mask = mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if right > 0 else mask
    else:
        _arrow(draw, big, math.atan2(down, right))
        if fires:  # in the free lower corner
            _ring(draw, big, 0.16 if right * down > 0 else 0.84, 0.84, 0.13)
    return mask.resize((size, size), Image.Resampling.LANCZOS)


def known_words(name: str) -> list[str] | None:
    """The known words of a name (``UPRIGHTFIRE``, ``turn_left``), or None when it contains anything else."""
    vocabulary = sorted((*DIRECTIONS, *TURNS, *FILLERS, *FIRE, *IDLE), key=len, reverse=True)
    rest = "".join(letter for letter in name.lower() if letter.isalnum())
    words = []
    while rest:
        word = next((word for word in vocabulary if rest.startswith(word)), None)
        if word is None:
            return None
        words.append(word)
        rest = rest[len(word) :]
    return [word for word in words if word not in FILLERS] or None


def _arrow(draw: ImageDraw.ImageDraw, big: int, angle: float) -> None:
    tip, neck, tail, barb, half = 0.44, 0.04, -0.42, 0.36, 0.1  # along and across the arrow, in units of the icon
    outline = [(tip, 0), (neck, barb), (neck, half), (tail, half), (tail, -half), (neck, -half), (neck, -barb)]
    cos, sin = math.cos(angle), math.sin(angle)
    draw.polygon([((0.5 + a * cos - c * sin) * big, (0.5 + a * sin + c * cos) * big) for a, c in outline], fill=255)


def _bent_arrow(draw: ImageDraw.ImageDraw, big: int) -> None:
    """An arc over the top with an arrow head at the left."""
    draw.arc([0.2 * big, 0.16 * big, 0.92 * big, 0.88 * big], 180, 20, fill=255, width=round(0.17 * big))
    draw.polygon([(0.02 * big, 0.48 * big), (0.285 * big, 0.86 * big), (0.55 * big, 0.48 * big)], fill=255)


def _ring(draw: ImageDraw.ImageDraw, big: int, x: float, y: float, radius: float) -> None:
    _circle(draw, big, x, y, radius, outline=255, width=round(0.4 * radius * big))


def _circle(draw: ImageDraw.ImageDraw, big: int, x: float, y: float, radius: float, **style: int) -> None:
    draw.ellipse([part * big for part in (x - radius, y - radius, x + radius, y + radius)], **style)
