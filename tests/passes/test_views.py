"""views: reshapes and transposes as relabelling, against numpy."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tvm import relax

from tvmflow.optimize.views import View, flat, permutation, plain, reshaped, sizes, transposed


def seen(view: View, memory: np.ndarray) -> np.ndarray:
    """The model's tensor, from memory by the view's own account."""
    before, after = flat(view.physical), flat(view.logical)
    assert set(before) == set(after)
    parts = memory.reshape([a.size for a in before])
    return parts.transpose([before.index(a) for a in after]).reshape(view.shape)


@given(st.data())
def test_any_chain_of_transposes_and_reshapes(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4))
    memory = np.arange(int(np.prod(shape)))
    view, value = plain(relax.Var("x", relax.TensorType(shape, "float32"))), memory.reshape(shape)
    for _ in range(data.draw(st.integers(1, 4))):
        if data.draw(st.booleans()):
            axes = data.draw(st.permutations(range(value.ndim)))
            view, value = transposed(view, axes), value.transpose(axes)
        else:
            sizes_left = list(value.shape)
            i = data.draw(st.integers(0, len(sizes_left) - 1))
            if data.draw(st.booleans()):
                divisors = [d for d in range(1, sizes_left[i] + 1) if sizes_left[i] % d == 0]
                d = data.draw(st.sampled_from(divisors))
                sizes_left[i : i + 1] = [d, sizes_left[i] // d]
            else:
                sizes_left[i : i + 2] = [int(np.prod(sizes_left[i : i + 2]))]
            new = reshaped(view, sizes_left)
            if new is None:
                continue
            view, value = new, value.reshape(sizes_left)
        assert view.shape == value.shape
        np.testing.assert_array_equal(seen(view, memory), value)


def test_reshape_across_axes_that_do_not_divide_is_refused() -> None:
    view = transposed(plain(relax.Var("x", relax.TensorType((6, 4), "float32"))), [1, 0])
    assert reshaped(view, (3, 8)) is None


def test_permutation_of_whole_dimensions_only() -> None:
    view = plain(relax.Var("x", relax.TensorType((1, 2, 3, 4), "float32")))
    n, c, h, w = view.logical
    assert permutation(view, [n, h, w, c]) == [0, 2, 3, 1]
    assert permutation(view, [n, (*h, *w), c]) is None
    assert sizes([n, (*h, *w), c]) == (1, 12, 2)
