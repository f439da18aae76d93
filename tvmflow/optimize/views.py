"""Views: which tensor the model means, said in terms of the tensor that is in memory.

A ``View`` names the axes of the memory's dimensions (``physical``) and of the model's dimensions (``logical``). A transpose of
the model reorders ``logical``, a reshape regroups it, and nothing happens in memory until an operator needs a certain order::

    NHWC in memory, NCHW in the model          physical (N)(H)(W)(C)    logical (N)(C)(H)(W)
    flattened for a dense layer                physical (N)(H)(W)(C)    logical (N)(C H W)
    channel shuffle: C = g x d, transposed     physical (N)(H)(W)(g d)  logical (N)(d g)(H)(W)

Axes of size 1 carry no order: they may stand anywhere, or in one of the two only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tvmflow.optimize.expr import shape_of


@dataclass(frozen=True, eq=False)
class Axis:
    """One axis of a view; two axes of one size are two axes."""

    size: int


Group = tuple[Axis, ...]


def flat(groups: Iterable[Group]) -> Group:
    """The axes of more than one element, in order."""
    return tuple(a for g in groups for a in g if a.size > 1)


def sizes(groups: Iterable[Group]) -> tuple[int, ...]:
    """Shape of a tensor with these dimensions."""
    return tuple(math.prod(a.size for a in g) for g in groups)


@dataclass(frozen=True)
class View:
    """``var`` in memory has one dimension for each group of ``physical``; the model sees one for each of ``logical``."""

    var: Any
    physical: tuple[Group, ...]
    logical: tuple[Group, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The model's shape."""
        return sizes(self.logical)

    @property
    def in_order(self) -> bool:
        """Whether memory has the model's order of elements."""
        return flat(self.physical) == flat(self.logical)

    def having(self, var: Any) -> View:
        """The same view of another tensor of the same shape."""
        return View(var, self.physical, self.logical)


def plain(var: Any, order: Sequence[int] | None = None) -> View:
    """View of a tensor whose memory dimension i is the model's dimension ``order[i]`` (default: i)."""
    physical = tuple((Axis(size),) for size in shape_of(var))
    order = range(len(physical)) if order is None else order
    return View(var, physical, tuple(physical[list(order).index(i)] for i in range(len(physical))))


def transposed(view: View, axes: Sequence[int]) -> View:
    """The model's ``permute_dims(view, axes)``."""
    return View(view.var, view.physical, tuple(view.logical[a] for a in axes))


def reshaped(view: View, shape: Sequence[int]) -> View | None:
    """The model's ``reshape(view, shape)``; None when a dimension would take parts of axes that don't divide."""
    queue = [a for g in view.logical for a in g]
    split: dict[Axis, Group] = {}
    logical: list[Group] = []
    for size in shape:
        if size == 1:
            logical.append((queue.pop(0) if queue and queue[0].size == 1 else Axis(1),))
            continue
        group: list[Axis] = []
        while size > 1:
            axis = queue.pop(0)
            if axis.size > size and axis.size % size == 0:
                parts = Axis(size), Axis(axis.size // size)
                split[axis] = parts
                axis = parts[0]
                queue.insert(0, parts[1])
            if size % axis.size:
                return None
            if axis.size > 1:
                group.append(axis)
            size //= axis.size
        logical.append(tuple(group))
    return View(view.var, tuple(_replace(g, split) for g in view.physical), tuple(logical))


def _replace(group: Group, split: dict[Axis, Group]) -> Group:
    """``group`` with axes replaced by their parts, which may have been split again."""
    result: list[Axis] = []
    for axis in group:
        result.extend(_replace(split[axis], split) if axis in split else (axis,))
    return tuple(result)


def dimension_of(view: View, axis: int) -> int | None:
    """Memory dimension that is exactly the model's dimension ``axis``; None when there is none."""
    wanted = flat([view.logical[axis]])
    for i, group in enumerate(view.physical):
        if flat([group]) == wanted and (wanted or any(a in view.logical[axis] for a in group)):
            return i
    return None


def whole_dimensions(view: View) -> tuple[Group, ...]:
    """The model's dimensions in memory's order, as dimensions for :func:`permutation`.

    A dimension that memory scatters stands where its first axis is, one of size 1 behind the dimension before it.
    """
    position = {axis: i for i, axis in enumerate(a for g in view.physical for a in g)}
    keys: list[float] = []
    for group in view.logical:
        known = [position[a] for a in group if a in position and (a.size > 1 or not flat([group]))]
        keys.append(min(known) if known else (keys[-1] + 1e-3 if keys else -1.0))
    return tuple(view.logical[i] for i in sorted(range(len(keys)), key=lambda i: keys[i]))


def permutation(view: View, wanted: Sequence[Group]) -> list[int] | None:
    """Axes of the ``permute_dims`` of memory that gives dimensions ``wanted``; None when dimensions must be regrouped too."""
    free = list(range(len(view.physical)))
    result: list[int | None] = [None] * len(wanted)
    for strict in (True, False):
        for i, group in enumerate(wanted):
            if result[i] is not None:
                continue
            key = flat([group])
            for j in free:
                fits = flat([view.physical[j]]) == key
                if fits and (key or not strict or any(a in group for a in view.physical[j])):
                    result[i] = j
                    free.remove(j)
                    break
    found = [j for j in result if j is not None]
    return found if not free and len(found) == len(wanted) else None
