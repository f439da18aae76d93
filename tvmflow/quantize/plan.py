"""What annotate decides and realize performs: sites (tensors that may be quantized), groups (bindings that become one kernel)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Site:
    """A tensor that may be quantized.

    ``id`` is the name of the variable that holds an activation (a graph input included), or ``"<layer>:weight"``.
    """

    id: str
    role: str
    """``input``, ``activation`` or ``weight``."""
    shape: tuple[int, ...]
    channel_axis: int | None = None
    """Axis with one scale per entry, None for one scale per tensor."""
    like: str = ""
    """Id of the site whose parameters this one must share (concat operands, max pool, reshape, ...); empty for its own."""


@dataclass(frozen=True)
class Group:
    """Bindings that become one integer kernel, or stay float for ``reason``."""

    layer: str
    """Original layer name: that of the first binding (the convolution of conv + bias + relu), of the last one for a table."""
    op: str
    """A key of realize's table: conv2d, depthwise, dense, matmul, scale_shift, add, mul, concat, max_pool, avg_pool, mean,
    lookup, reshape, transpose, slice, pad, resize, split, ...; of a float layer, the Relax operator."""
    bindings: tuple[str, ...]
    """Variable names in program order."""
    inputs: tuple[str, ...]
    """Site ids of the activations read."""
    output: str
    """Site id of the activation written: the last of ``bindings``."""
    weight: str = ""
    integer: bool = True
    reason: str = ""
    """Why it stays float; empty when ``integer``."""


@dataclass(frozen=True)
class Plan:
    """Result of annotate: every binding of the graph belongs to exactly one group, in program order."""

    sites: tuple[Site, ...]
    groups: tuple[Group, ...]
