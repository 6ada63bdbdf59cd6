"""Contact sheets: captioned images in rows, drawn with Pillow."""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from finetune.core.errors import ConfigError, OutputError
from finetune.core.files import exists, is_folder, unwritable, write_atomically

_WIDTH = 1456
_SMALLEST, _LARGEST = 128, 256
_MARGIN, _GAP = 16, 16
_TITLE, _CAPTION = 20, 15
_LINE = 1.3
_MOST_LINES = 4
_PAPER, _INK, _FAINT = "white", "#1a1a1a", "#5a5a5a"
BATCH_BY, NEXT_BY = "finetune show-batch", "finetune next"
"""Commands in the metadata of the sheets, which only they replace."""
_LETTERS = str.maketrans(
    {"ß": "ss", "æ": "ae", "Æ": "Ae", "œ": "oe", "Œ": "Oe", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L"}
)
_NO_CHARACTER = "\U0010ffff"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Cell:
    """An image and its caption lines."""

    image: Image.Image
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """A titled group of images.

    Attributes:
        title: Heading of the section.
        words: Description below the title, in smaller type.
        cells: Images of the section.
    """

    title: str
    words: str
    cells: tuple[Cell, ...]


def scale_of(side: int) -> float:
    """Scale factor from image pixels to sheet pixels, for images of ``side`` pixels.

    Images of 128 to 256 pixels are not scaled. Smaller images are enlarged by an integer, so that
    pixels stay sharp.
    """
    if side < _SMALLEST:
        return float(math.ceil(_SMALLEST / side))
    return min(1.0, _LARGEST / side)


def draw_sheet(sections: Sequence[Section]) -> Image.Image:
    """Draw a contact sheet; all images have the same size, and text is wrapped."""
    side = round(scale_of(sections[0].cells[0].image.width) * sections[0].cells[0].image.width)
    most = max(len(section.cells) for section in sections)
    fitting = max(1, (_WIDTH - 2 * _MARGIN + _GAP) // (side + _GAP))
    columns = math.ceil(most / math.ceil(most / fitting))
    width = max(columns * (side + _GAP) - _GAP + 2 * _MARGIN, 480)
    blocks = [_block(section, side, columns, width) for section in sections]
    sheet = Image.new("RGB", (width, sum(block.height for block in blocks)), _PAPER)
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    return sheet


def _block(section: Section, side: int, columns: int, width: int) -> Image.Image:
    title, small = _font(_TITLE), _font(_CAPTION)
    room = width - 2 * _MARGIN
    titles = wrap(section.title, title.getlength, room)
    words = wrap(section.words, small.getlength, room)
    captions = [
        [part for line in cell.lines for part in wrap(line, small.getlength, side)]
        for cell in section.cells
    ]
    rows = [range(at, min(at + columns, len(captions))) for at in range(0, len(captions), columns)]
    heights = [
        side + 6 + _height(_CAPTION, max(len(captions[i]) for i in row)) + _GAP for row in rows
    ]
    top = _MARGIN + _height(_TITLE, len(titles)) + _height(_CAPTION, len(words)) + 10
    block = Image.new("RGB", (width, top + sum(heights)), _PAPER)
    draw = ImageDraw.Draw(block)
    y = _write(draw, titles, title, _MARGIN, _MARGIN, _TITLE, _INK)
    _write(draw, words, small, _MARGIN, y, _CAPTION, _FAINT)
    for row, height in zip(rows, heights, strict=True):
        for column, at in enumerate(row):
            left = _MARGIN + column * (side + _GAP)
            block.paste(_scaled(section.cells[at].image, side), (left, top))
            _write(draw, captions[at], small, left, top + side + 6, _CAPTION, _INK)
        top += height
    return block


def _scaled(image: Image.Image, side: int) -> Image.Image:
    if image.width == side:
        return image
    enlarged = side > image.width
    how = Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS
    return image.resize((side, side), how)


def _write(
    draw: ImageDraw.ImageDraw,
    lines: Sequence[str],
    font: Font,
    left: int,
    top: int,
    size: int,
    colour: str,
) -> int:
    for number, line in enumerate(lines):
        draw.text((left, top + _height(size, number)), line, fill=colour, font=font)
    return top + _height(size, len(lines))


def _height(size: int, lines: int) -> int:
    return round(size * _LINE * lines)


def wrap(text: str, length: Callable[[str], float], room: float) -> list[str]:
    """Wrap text after spaces, ``_``, ``-`` and ``/``, and within a word only if needed.

    Text of more than four lines is shortened in the middle.
    """
    lines = _lines(text, length, room)
    shown = len(text)
    while len(lines) > _MOST_LINES:
        shown -= 1
        lines = _lines(f"{text[: shown // 2]}…{text[-(shown - shown // 2) :]}", length, room)
    return lines


def _lines(text: str, length: Callable[[str], float], room: float) -> list[str]:
    lines = [""]
    for word in re.findall(r"[^ _/-]*[ _/-]|[^ _/-]+", text):
        if length((lines[-1] + word).rstrip()) <= room:
            lines[-1] += word
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if lines[-1] and length((lines[-1] + character).rstrip()) > room:
                lines.append("")
            lines[-1] += character
    return [line.rstrip() for line in lines if line.strip()]


@functools.cache
def _font(size: int) -> Font:
    """Pillow's built-in font."""
    return ImageFont.load_default(size)


@functools.cache
def can_write(text: str) -> bool:
    """Whether the font has a glyph for every character of the text."""
    font = _font(_CAPTION)
    if not isinstance(font, ImageFont.FreeTypeFont):
        return text.isascii()
    absent = bytes(font.getmask(_NO_CHARACTER))
    return all(c == " " or bytes(font.getmask(c)) != absent for c in text)


def stand_ins(names: Sequence[str]) -> dict[str, str]:
    """Return a replacement for each class name that the font cannot write.

    The replacement is the name without accents if the font can write it and it is unique, otherwise
    the class index.
    """
    taken = {name for name in names if can_write(name)}
    result = {}
    for number, name in enumerate(names):
        if can_write(name):
            continue
        choices = [_without_accents(name), f"class {number}", f"class no. {number} of all"]
        result[name] = next(c for c in choices if c.strip() and can_write(c) and c not in taken)
        taken.add(result[name])
    return result


def _without_accents(name: str) -> str:
    parts = unicodedata.normalize("NFKD", name.translate(_LETTERS))
    return "".join(c for c in parts if not unicodedata.combining(c))


def check_output(path: Path, maker: str) -> None:
    """Raise if a contact sheet cannot be written to ``path``; called before any work.

    Args:
        maker: Command whose earlier sheets may be replaced.

    Raises:
        ConfigError: the path does not end in .png.
        OutputError: the folder does not exist, or the file exists and is not a sheet of ``maker``.
    """
    if path.suffix.lower() != ".png":
        raise ConfigError(
            "the sheet is a PNG file",
            kind="config.plot_format",
            key="--output",
            path=path,
            to_do="use a name that ends in .png",
        )
    if not is_folder(path.parent):
        raise unwritable(path, f"there is no folder {path.parent}")
    if exists(path) and not _is_by(maker, path):
        raise OutputError(
            f"exists already and was not written by {maker.removeprefix('finetune ')}",
            kind="output.exists",
            path=path,
            to_do="choose another file with --output",
        )


def _is_by(maker: str, path: Path) -> bool:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return bool(image.info.get("Software") == maker)
    except Exception:  # not a readable PNG, hence not a sheet
        return False


def save_sheet(sheet: Image.Image, path: Path, maker: str) -> None:
    """Write the sheet atomically as a PNG.

    Raises:
        OutputError: the file cannot be written.
    """
    mark = PngInfo()
    mark.add_text("Software", maker)
    write_atomically(path, lambda file: sheet.save(file, "PNG", pnginfo=mark))
