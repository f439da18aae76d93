"""Natural pictures for the image classifiers, from a zip of the user's: none are in the repository."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np
from missing import Missing

CALIBRATION = 64
"""As many as onnxruntime's quantizer is given, so that both calibrate on the same ones."""
LABELLED = r"imagenet_\d+_(\d+)_\d+\.jpg$"
"""Pictures of ImageNet say their class in their names."""
NOTE = f"{CALIBRATION} pictures without labels calibrate; all others are held out"


def declaration(color: str, mean: tuple[float, ...], std: tuple[float, ...], layout: str) -> str:
    """``preprocess.toml`` of a 224 x 224 classifier."""
    return f"""schema = 1
label_pattern = '{LABELLED}'

[preprocess]
short_side = 256
resample = "bicubic"
crop = [224, 224]
color = "{color}"
mean = {list(mean)}
std = {list(std)}
layout = "{layout}"
"""


def split(folder: Path, source: Path | None, preprocess: str, labelled: bool) -> tuple[Path, Path]:
    """Folders of calibration and held-out pictures, disjoint. ``labelled`` False when the classes mean nothing to the model."""
    if source is None:
        raise Missing("no pictures: give a zip of natural pictures with --pictures ZIP")
    if not source.is_file():
        raise Missing(f"no pictures: there is no file {source}")
    with zipfile.ZipFile(source) as archive:
        names = sorted(n for n in archive.namelist() if n.lower().endswith((".jpg", ".jpeg", ".png")))
        others = [n for n in names if not re.search(LABELLED, n)]
        if len(others) <= CALIBRATION:
            raise Missing(f"only {len(others)} pictures without a label in {source}; more than {CALIBRATION} are needed")
        chosen = {others[i] for i in np.linspace(0, len(others) - 1, CALIBRATION).round().astype(int)}
        places = folder / "calibration", folder / "heldout"
        for place in places:
            place.mkdir(parents=True, exist_ok=True)
            text = preprocess if labelled and place == places[1] else re.sub("label_pattern.*\n", "", preprocess)
            (place / "preprocess.toml").write_text(text)
        for name in names:
            (places[name not in chosen] / Path(name).name).write_bytes(archive.read(name))
    return places
