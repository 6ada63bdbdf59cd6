"""Pictures in rows with words below them, as one picture; Pillow alone, no torch."""

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

from finetune.errors import ConfigError, OutputError
from finetune.files import exists, is_folder, write_atomically

_WIDTH = 1456
_SMALLEST, _LARGEST = 128, 256
_MARGIN, _GAP = 16, 16
_TITLE, _CAPTION = 20, 15
_LINE = 1.3
_MOST_LINES = 4
_PAPER, _INK, _FAINT = "white", "#1a1a1a", "#5a5a5a"
_MAKER = "finetune show-batch"
_LETTERS = str.maketrans(
    {"ß": "ss", "æ": "ae", "Æ": "Ae", "œ": "oe", "Œ": "Oe", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L"}
)
_NO_CHARACTER = "\U0010ffff"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Cell:
    """A picture, and the lines below it."""

    image: Image.Image
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """Pictures under a title; ``words`` in smaller letters below it."""

    title: str
    words: str
    cells: tuple[Cell, ...]


def scale_of(side: int) -> float:
    """Pixels of the sheet for one of a picture: whole numbers enlarge, so that pixels stay sharp.

    A picture of 128 to 256 pixels is shown as it is.
    """
    if side < _SMALLEST:
        return float(math.ceil(_SMALLEST / side))
    return min(1.0, _LARGEST / side)


def draw_sheet(sections: Sequence[Section]) -> Image.Image:
    """The sheet; every picture has the same size, every text is whole."""
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
    """Text in lines that fit: broken behind spaces, _, - and /, within a word only where needed.

    What four lines cannot hold loses its middle.
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
    """Pillow's own font, so that nothing has to be installed."""
    return ImageFont.load_default(size)


@functools.cache
def can_write(text: str) -> bool:
    """Whether the font has every letter of it."""
    font = _font(_CAPTION)
    if not isinstance(font, ImageFont.FreeTypeFont):
        return text.isascii()
    absent = bytes(font.getmask(_NO_CHARACTER))
    return all(c == " " or bytes(font.getmask(c)) != absent for c in text)


def stand_ins(names: Sequence[str]) -> dict[str, str]:
    """What to write for each name that the font has no letters for.

    Its letters without their accents where that is enough and no other class is called so, else
    the number of the class.
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


def check_output(path: Path) -> None:
    """Before any work: can a sheet be written there?

    Raises:
        ConfigError: it is no name of a PNG.
        OutputError: something lies there that is no earlier sheet, or there is no such folder.
    """
    if path.suffix.lower() != ".png":
        raise ConfigError(f"--output: {path}: a sheet is a PNG; give a name that ends in .png")
    if not is_folder(path.parent):
        raise OutputError(f"{path}: cannot be written: there is no folder {path.parent}")
    if exists(path) and not _is_ours(path):
        raise OutputError(
            f"{path}: is there already, and is no sheet of show-batch; give --output another name"
        )


def _is_ours(path: Path) -> bool:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return bool(image.info.get("Software") == _MAKER)
    except Exception:  # whatever it is, it is no sheet
        return False


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """Write it, whole or not at all.

    Raises:
        OutputError: it could not be written.
    """
    mark = PngInfo()
    mark.add_text("Software", _MAKER)
    write_atomically(path, lambda file: sheet.save(file, "PNG", pnginfo=mark))
