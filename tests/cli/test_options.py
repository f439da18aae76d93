"""How the text of options is read."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmflow.cli.options import existing_or_callable, parse_budget, parse_shapes
from tvmflow.errors import UsageError, UserError


@given(
    st.dictionaries(st.text(min_size=1).filter(lambda s: "=" not in s), st.lists(st.integers(1, 10**6), max_size=5).map(tuple))
)
def test_shapes_round_trip(shapes: dict[str, tuple[int, ...]]) -> None:
    texts = [f"{name}={'x'.join(map(str, shape))}" for name, shape in shapes.items()]
    assert parse_shapes(texts) == (shapes or None)


def test_shape_name_may_hold_an_equals_sign() -> None:
    assert parse_shapes(["a=b=1x2"]) == {"a=b": (1, 2)}


@pytest.mark.parametrize("text", ["1x3", "=1x3", "x=1x", "x=1xa", "x=-1x3", "x=0x3", "x=1 x 3"])
def test_bad_shape(text: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_shapes([text])
    assert text in str(error.value)


def test_shape_given_twice() -> None:
    with pytest.raises(UsageError, match="twice"):
        parse_shapes(["x=1", "x=2"])


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("20m", 1200), ("1h30m", 5400), ("1.5m", 90), (None, None)])
def test_budget(text: str | None, seconds: float | None) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["20", "m", "", "20 m", "20min", "-5m", "0s", "1d"])
def test_bad_budget(text: str) -> None:
    with pytest.raises(UsageError, match="20m, 90s"):
        parse_budget(text)


def test_callable_is_looked_up_later_but_a_path_must_be_there(tmp_path: Path) -> None:
    assert existing_or_callable("package.module:build") == "package.module:build"
    with pytest.raises(UserError, match="no such file"):
        existing_or_callable(str(tmp_path / "model.onnx"))
