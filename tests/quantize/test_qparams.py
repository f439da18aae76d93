"""Parameters: zero is exact, the range is covered, and files round-trip to the last bit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmflow.errors import ConfigError
from tvmflow.quantize.observers import MIN_SCALE
from tvmflow.quantize.plan import Plan, Site
from tvmflow.quantize.qparams import Origin, QParam, QParams, activation_param, load_qparams, read_params_file, save_qparams
from tvmflow.quantize.recipe import Recipe, load_recipe

PLAN = Plan(
    (
        Site("image", "input", (1, 4, 4, 3)),
        Site("/c/Conv:weight", "weight", (2, 3, 3, 3), 0),
        Site("/c/Conv", "activation", (1, 4, 4, 2)),
        Site("/p/Pool", "activation", (1, 2, 2, 2), like="/c/Conv"),
    ),
    (),
)


def params() -> QParams:
    conv = activation_param(-0.3, 1.7, "minmax")
    weight = QParam(np.array([0.1, 1 / 3], np.float32), 0, -12.7, 3.0, "mse")
    return {"image": activation_param(0, 1, "percentile 99.9"), "/c/Conv:weight": weight, "/c/Conv": conv, "/p/Pool": conv}


def saved(tmp_path: Path, found: QParams | None = None) -> Path:
    path = tmp_path / "params.json"
    save_qparams(path, found or params(), PLAN, load_recipe("int8"), Origin("abc", "def", 7, {"tvmflow": "1"}))
    return path


def edited(tmp_path: Path, **changes: object) -> Path:
    path = saved(tmp_path)
    content = json.loads(path.read_text())
    for site, value in changes.items():
        name = {"image": "image", "weight": "/c/Conv:weight", "conv": "/c/Conv", "pool": "/p/Pool"}[site]
        if value is None:
            del content["sites"][name]
        else:
            content["sites"][name] = {**content["sites"][name], **value} if "like" not in value else value  # type: ignore[operator,dict-item]
    path.write_text(json.dumps(content))
    return path


@given(st.floats(-(2.0**100), 2.0**100, width=32), st.floats(-(2.0**100), 2.0**100, width=32), st.booleans())
def test_codes_cover_the_range_and_zero(a: float, b: float, symmetric: bool) -> None:
    low, high = min(a, b), max(a, b)
    param = activation_param(low, high, "minmax", symmetric)
    scale = float(param.scale[0])
    assert param.scale.dtype == np.float32
    assert scale >= MIN_SCALE * 0.999
    assert -128 <= param.zero_point <= 127
    if symmetric:
        assert param.zero_point == 0
    slack = 0.501 * scale * (1 + 1e-6)
    if max(-low, high) > 128 * MIN_SCALE:
        assert scale * (-128 - param.zero_point) <= min(low, 0) + slack
        assert scale * (127 - param.zero_point) >= max(high, 0) - slack


def test_known_ranges() -> None:
    relu6 = activation_param(0, 6, "minmax")
    assert (relu6.zero_point, relu6.scale[0]) == (-128, np.float32(6 / 255))
    assert activation_param(-6, 0, "minmax").zero_point == 127
    assert activation_param(2, 6, "minmax").zero_point == -128
    nothing = activation_param(0, 0, "minmax")
    assert (nothing.zero_point, nothing.scale[0]) == (0, 1)
    assert activation_param(0, 1e-38, "minmax").scale[0] == np.float32(MIN_SCALE)


@given(st.lists(st.floats(2.0**-59, 2.0**127, width=32), min_size=2, max_size=2), st.floats(-1e300, 1e300))
def test_files_round_trip_exactly(scales: list[float], low: float) -> None:
    import tempfile

    found = {**params(), "/c/Conv:weight": QParam(np.array(scales, np.float32), 0, low, 2.0, "mse")}
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_qparams(saved(Path(folder), found), PLAN)
    for site, param in found.items():
        assert np.array_equal(loaded[site].scale, param.scale)
        assert loaded[site].scale.dtype == np.float32
        assert (loaded[site].zero_point, loaded[site].low, loaded[site].high) == (param.zero_point, param.low, param.high)


def test_the_file_carries_recipe_and_origin_and_leaves_nothing_behind(tmp_path: Path) -> None:
    content = read_params_file(saved(tmp_path))
    assert content.recipe == load_recipe("int8")
    assert content.origin.samples == 7
    assert [p.name for p in tmp_path.iterdir()] == ["params.json"]


def test_shifts_are_stored_exactly(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    means = {"/c/Conv": np.array([1 / 3, -2e-17])}
    save_qparams(path, params(), PLAN, load_recipe("int8"), Origin(), means)
    assert read_params_file(path).shifts == {"/c/Conv": (1 / 3, -2e-17)}


def test_editing_a_site_changes_those_that_share_it(tmp_path: Path) -> None:
    loaded = load_qparams(edited(tmp_path, conv={"scale": [0.5], "zero_point": 3}), PLAN)
    assert loaded["/p/Pool"] is loaded["/c/Conv"]
    assert (loaded["/p/Pool"].scale[0], loaded["/p/Pool"].zero_point) == (0.5, 3)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"conv": None}, "'/c/Conv' has no parameters"),
        ({"weight": {"scale": [1.0, 1.0, 1.0]}}, "3 scales for 2 channels"),
        ({"image": {"scale": [0.0]}}, "at least"),
        ({"image": {"zero_point": 200}}, "zero_point"),
        ({"image": {"zero_pont": 2}}, "unknown field"),
        ({"weight": {"zero_point": 3}}, "weights are symmetric"),
        ({"pool": {"like": "/c/Con"}}, "did you mean '/c/Conv'"),
        ({"conv": {"like": "/p/Pool"}}, "circle"),
    ],
)
def test_wrong_edits_are_refused(changes: dict[str, object], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        load_qparams(edited(tmp_path, **changes), PLAN)


def test_a_file_of_another_model_names_the_nearest_site(tmp_path: Path) -> None:
    other = Plan((*PLAN.sites[:-1], Site("/p/MaxPool", "activation", (1, 2, 2, 2), like="/c/Conv")), ())
    with pytest.raises(ConfigError, match="'/p/Pool' is not in this model's plan(.|\n)*did you mean '/p/MaxPool'"):
        load_qparams(saved(tmp_path), other)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema": 1}', b"\xff\xfe"])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="not a file of quantization parameters"):
        load_qparams(path, PLAN)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 9', 1))
    with pytest.raises(ConfigError, match="newer"):
        load_qparams(path, PLAN)
    assert Recipe(1, "r")
