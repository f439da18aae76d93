"""The models that are measured, and what each of them is judged by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pictures
import sentences
import text_pictures

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "tests" / "data"


@dataclass(frozen=True)
class Data:
    """Real inputs of one model, as ``tvmflow.data`` takes them."""

    calibration: str
    heldout: str
    texts: tuple[str, ...] = ()
    """What the held-out pictures of text say, in order."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One model."""

    name: str
    make: Callable[[Path, Path | None], Data]
    """``make(folder, pictures)`` writes the data; raises Missing when it has nothing to make them from."""
    zoo: str = ""
    """Name in the model zoo; empty for the shipped model."""
    judged: str = "classes"
    """``classes``, ``text`` (CTC over time steps), ``mask`` (a probability a pixel), or ``embedding``."""
    dynamic: bool = False
    """Compared with onnxruntime's dynamic quantization too, which it recommends for transformers."""
    all_integer: bool = False
    """Every operator has to be integer."""


def digits(folder: Path, _: Path | None) -> Data:
    """The shipped digits: 512 that the network was trained on, 2,000 that it has never seen."""
    return Data(str(SHIPPED / "mnist_calibration.npz"), str(SHIPPED / "mnist_heldout.npz"))


def from_pictures(preprocess: str, labelled: bool) -> Callable[[Path, Path | None], Data]:
    def make(folder: Path, source: Path | None) -> Data:
        calibration, heldout = pictures.split(folder, source, preprocess, labelled)
        return Data(str(calibration), str(heldout), notes=(pictures.NOTE,))

    return make


def from_text(make_arrays: Callable[[Path], text_pictures.Made]) -> Callable[[Path, Path | None], Data]:
    def make(folder: Path, _: Path | None) -> Data:
        made = make_arrays(folder)
        return Data(str(made.calibration), str(made.heldout), made.texts, made.notes)

    return make


def from_sentences(folder: Path, _: Path | None) -> Data:
    calibration, heldout, notes = sentences.write(folder)
    return Data(str(calibration), str(heldout), notes=notes)


IMAGENET = pictures.declaration("rgb", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), "NCHW")
LITE = pictures.declaration("rgb", (127.0,), (128.0,), "NCHW")
NSFW = pictures.declaration("bgr", (104.0, 117.0, 123.0), (1.0,), "NHWC")

ENTRIES = (
    Entry("mobilenetv2_mnist", digits),
    Entry("efficientnet_lite0", from_pictures(LITE, True), "efficientnet_lite0"),
    Entry("open_nsfw", from_pictures(NSFW, False), "open_nsfw"),
    Entry("ppocrv4_rec", from_text(text_pictures.words), "ppocrv4_rec", judged="text"),
    Entry("ppocr_cls", from_text(text_pictures.orientations), "ppocr_cls"),
    Entry("ppocrv6_det", from_text(text_pictures.pages), "ppocrv6_det", judged="mask"),
    Entry("minilm_l6_v2", from_sentences, "minilm_l6_v2", judged="embedding", dynamic=True),
    Entry("resnet50", from_pictures(IMAGENET, False), "resnet50", all_integer=True),
    Entry("mobilenetv2", from_pictures(IMAGENET, False), "mobilenetv2", all_integer=True),
)
