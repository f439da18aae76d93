"""Kernel times joined with the manifest's layers."""

from __future__ import annotations

import pytest

from tvmflow.bench.layers import BETWEEN, layer_times
from tvmflow.bench.measure import MachinePeak
from tvmflow.build.manifest import Layer
from tvmflow.runtime.profile import Profile

LAYERS = (
    Layer("/conv1", "conv2d", gop=0.5, kernel="k0", integer=True, schedule="conv2d vnni512 1x14x2", tuned=True),
    Layer("/relu", "relu", kernel="k1", integer=True),
    Layer("/conv2", "conv2d", gop=0.25, kernel="k0", integer=True),
    Layer("/head", "dense", gop=0.1, kernel="k2"),
)


def profile(*kernels: tuple[str, float], whole: float = 0.0) -> Profile:
    return Profile(kernels, whole)


def test_layers_that_share_a_kernel_are_told_apart_by_order() -> None:
    *found, rest = layer_times(
        profile(("k0", 1.0), ("k1", 0.1), ("k0", 2.0), ("k2", 1.0), whole=4.5), LAYERS, MachinePeak(1000, 200)
    )
    assert [layer.name for layer in found] == ["/conv1", "/relu", "/conv2", "/head"]
    assert [layer.ms for layer in found] == [1.0, 0.1, 2.0, 1.0]
    assert found[0].peak_fraction == pytest.approx(0.5) and found[2].peak_fraction == pytest.approx(0.125)
    assert found[1].peak_fraction is None
    assert found[3].peak_fraction == pytest.approx(0.5), "a float layer is held against the float peak"
    assert [(layer.schedule, layer.tuned) for layer in found[:2]] == [("conv2d vnni512 1x14x2", True), ("", False)]
    assert (rest.name, rest.ms) == (BETWEEN, pytest.approx(0.4))


def test_kernels_that_seem_longer_than_the_whole_are_shown_as_they_are() -> None:
    *found, rest = layer_times(profile(("k0", 1.0), whole=0.9), LAYERS)
    assert found[0].ms == 1.0 and rest.ms == 0


def test_unknown_kernels_are_kept() -> None:
    found, _ = layer_times(profile(("helper", 0.3)), LAYERS)
    assert (found.name, found.op, found.ms, found.peak_fraction) == ("helper", "other", 0.3, None)


def test_names_serve_where_the_manifest_has_no_symbols() -> None:
    found, _ = layer_times(profile(("/conv", 0.3)), [Layer("/conv", "conv2d", gop=1.0)])
    assert found.op == "conv2d" and found.gop == 1.0
