"""Kernel times of a model on a board. Runs in the board's server: an instrument of the VM can't be called across the network."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from tvmflow.runtime import library
from tvmflow.runtime import profile as runtime


def profile(vm: Any, function: str, layers: str, device: str, runs: int) -> str:
    """:class:`tvmflow.runtime.profile.Profile` of a bound function, as JSON.

    ``vm`` is the virtual machine's module; ``function`` and ``layers`` are names under which ``save_function`` kept calls.
    """
    wait = library.waiting_for(library.find_device(device))
    return json.dumps(asdict(runtime.profile(vm[function], vm[layers], wait, vm["set_instrument"], runs)))
