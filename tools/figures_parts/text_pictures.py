"""Pictures of text for the readers: rendered, seeded, as their preprocessing wants them (``(x / 255 - 0.5) / 0.5``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono", "LiberationSans-Regular", "LiberationSans-Bold",
    "LiberationSerif-Regular", "LiberationSerif-Italic", "LiberationMono-Regular", "LiberationSansNarrow-Regular",
)  # fmt: skip
TEXT = """the invoice total amount due before noon platform seven exit only please keep left harbour ticket office closed
on Monday fresh bread daily coffee tea orange juice 250 g net weight best before 03/2027 serial number AX-4471 caution wet
floor no smoking fire door keep shut emergency telephone 112 north station bus 42 to airport museum opens at 9:30 free
admission for children library garden theatre bridge street market square hospital pharmacy quiet zone speed limit 50 km
winter sale 30% off all jackets thank you for your visit"""
WORDS = TEXT.split()
INPUT = "x"
CALIBRATION, HELDOUT = 64, 100
PAGES = 16, 24
SEED = 2026


@dataclass(frozen=True)
class Made:
    """Two .npz files, and what the held-out pictures say."""

    calibration: Path
    heldout: Path
    texts: tuple[str, ...]
    notes: tuple[str, ...]


class Writer:
    """Draws text: another font, size, colour and noise each time, all from one seeded generator."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random
        self.fonts = [name for name in FONTS if _loads(name)]

    @property
    def notes(self) -> tuple[str, ...]:
        return (f"text in {len(self.fonts)} fonts" if self.fonts else "text in Pillow's own font: no others are installed",)

    def font(self, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
        if not self.fonts:
            return ImageFont.load_default(size)
        return ImageFont.truetype(f"{self.random.choice(self.fonts)}.ttf", size)

    def colours(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Background and ink, apart enough to be read."""
        light, dark = self.random.integers(180, 256, 3), self.random.integers(0, 90, 3)
        first, second = tuple(map(int, light)), tuple(map(int, dark))
        return (first, second) if self.random.random() < 0.8 else (second, first)

    def words(self, most: int) -> str:
        return " ".join(self.random.choice(WORDS, self.random.integers(1, most + 1)))

    def line(self, text: str) -> Image.Image:
        """A picture just larger than the text."""
        paper, ink = self.colours()
        font, margin = self.font(int(self.random.integers(24, 44))), int(self.random.integers(2, 9))
        left, top, right, bottom = (int(v) for v in font.getbbox(text))
        picture = Image.new("RGB", (right - left + 2 * margin, bottom - top + 2 * margin), paper)
        ImageDraw.Draw(picture).text((margin - left, margin - top), text, ink, font=font)
        return picture

    def noisy(self, picture: Image.Image) -> np.ndarray:
        """float32 ``[H, W, 3]``, 0 to 255."""
        pixels = np.asarray(picture, np.float32)
        return np.clip(pixels + self.random.normal(0, self.random.uniform(0, 8), pixels.shape), 0, 255).astype(np.float32)


def _loads(name: str) -> bool:
    try:
        ImageFont.truetype(f"{name}.ttf", 12)
    except OSError:
        return False
    return True


def normalised(pixels: np.ndarray, width: int) -> np.ndarray:
    """``[3, H, width]``: normalised, then filled up with zeros at the right, as the readers were trained."""
    values = ((pixels / np.float32(255) - np.float32(0.5)) / np.float32(0.5)).transpose(2, 0, 1)
    return np.pad(values, ((0, 0), (0, 0), (0, width - values.shape[2])))


def strip(writer: Writer, text: str, width: int, turned: bool = False) -> np.ndarray:
    """``[3, 48, width]`` with one line of text."""
    line = writer.line(text)
    line = line.rotate(180) if turned else line
    scaled = line.resize((min(width, max(1, round(line.width * 48 / line.height))), 48), Image.Resampling.BILINEAR)
    return normalised(writer.noisy(scaled), width)


def words(folder: Path) -> Made:
    """For recognition: 48 x 320, one to three words each."""
    writer = Writer(np.random.default_rng(SEED))
    texts = [writer.words(3) for _ in range(CALIBRATION + HELDOUT)]
    return _save(folder, writer, [strip(writer, text, 320) for text in texts], CALIBRATION, texts=texts)


def orientations(folder: Path) -> Made:
    """For orientation: 48 x 192, every second one upside down (class 1)."""
    writer = Writer(np.random.default_rng(SEED + 1))
    turned = [bool(i % 2) for i in range(CALIBRATION + HELDOUT)]
    return _save(folder, writer, [strip(writer, writer.words(2), 192, t) for t in turned], CALIBRATION, labels=turned)


def pages(folder: Path) -> Made:
    """For detection: 320 x 640, several lines at different places."""
    writer = Writer(np.random.default_rng(SEED + 2))

    def page() -> np.ndarray:
        picture = Image.new("RGB", (640, 320), writer.colours()[0])
        top = int(writer.random.integers(5, 25))
        while top < 280:
            line = writer.line(writer.words(4))
            picture.paste(line, (int(writer.random.integers(5, 200)), top))
            top += line.height + int(writer.random.integers(8, 60))
        return normalised(writer.noisy(picture), 640)

    return _save(folder, writer, _repeat(page, sum(PAGES)), PAGES[0])


def _repeat(make: Callable[[], np.ndarray], count: int) -> list[np.ndarray]:
    return [make() for _ in range(count)]


def _save(
    folder: Path,
    writer: Writer,
    rows: list[np.ndarray],
    first: int,
    *,
    texts: list[str] | None = None,
    labels: list[bool] | None = None,
) -> Made:
    """The first rows calibrate."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "calibration.npz", folder / "heldout.npz"
    known = {} if labels is None else {"label": np.array(labels[first:], np.int64)}
    np.savez(paths[0], **{INPUT: np.stack(rows[:first])})
    np.savez(paths[1], **{INPUT: np.stack(rows[first:]), **known})
    return Made(*paths, tuple(texts[first:]) if texts else (), writer.notes)
