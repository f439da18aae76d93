"""The program of a small network after optimize and after quantize, word for word as in tests/golden.

A change of a pass shows there as a diff to be read. ``UPDATE_GOLDEN=1 pytest tests/flow/test_programs.py`` writes the files anew.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from tvmflow.flow.lower import Lowered, lower
from tvmflow.target import get_target
from tvmflow.trace import Trace

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def lowered(every_kernel: dict[str, Any]) -> Lowered:
    options = dict(every_kernel)
    return lower(options.pop("model"), get_target("x86-64"), Trace(None), **options)


def listing(module: Any) -> str:
    """The module as ``--dump`` shows it, without what calibration on another machine could change: the constants."""
    return re.sub(r'metadata\["ir\.\w+"\]\[\d+\]', "constant", module.script()).rstrip() + "\n"


@pytest.mark.parametrize("name", ["optimized", "int8"])
def test_program_is_the_golden_one(name: str, lowered: Lowered) -> None:
    text = listing((lowered.floating if name == "optimized" else lowered.model).module)
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text()
