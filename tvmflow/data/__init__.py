"""Data for calibration, evaluation and runs: one streaming :class:`DataSet`, whatever the samples come from.

- ``digits.npz``: arrays named after the model's inputs, first axis = samples, an optional array ``label``. With a file
  ``digits.preprocess.toml`` beside it the array holds raw pixels, uint8, that are preprocessed as declared there.
- ``pictures/``: a folder of images with a ``preprocess.toml``; classes in ``labels.csv`` (``file,label``) or in the file names.
- ``package.module:callable``: called without arguments, yields a dictionary per sample, with an optional ``label``.

Any of them may end in rows as Python writes them, ``digits.npz[0:512]`` or ``pictures[::10]``.
"""

from __future__ import annotations

from tvmflow.data.dataset import DataSet, load_data
from tvmflow.data.preprocess import Preprocess

__all__ = ["DataSet", "Preprocess", "load_data"]
