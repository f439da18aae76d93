"""LSTM, GRU and RNN over a sequence of known length become their steps, one after the other.

::

    Before   Y, Y_h, Y_c = LSTM(X, W, R, B)
    After    P = X W' + B                              all steps in one product
             h, c = gates(P[t] + h R'), c  ...         once per step

What is not unrolled is refused in reject.py. Order of gates and formulas: ONNX, operators LSTM, GRU and RNN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import GenericConst
from tvm.relax import op as R

from tvmflow.importer.expr import operand, sizes, value

Function = Callable[[relax.Expr], relax.Expr]
State = tuple[relax.Expr, ...]
Step = Callable[["Cell", relax.Expr, State], State]

ACTIVATIONS: Mapping[str, Function] = {"Relu": R.nn.relu, "Sigmoid": R.sigmoid, "Tanh": R.tanh}
FAN_IN = 16
"""Operands of one concatenation; a kernel with hundreds of them is slow."""


class Cell:
    """One direction of a layer: its weights, shared by all steps, and the operators of a step."""

    def __init__(self, bb: relax.BlockBuilder, weights: Mapping[str, np.ndarray], functions: Sequence[Function]) -> None:
        self.bb, self.functions = bb, functions
        self.weights: dict[str, relax.Expr] = {name: relax.const(np.ascontiguousarray(w)) for name, w in weights.items()}

    def dense(self, x: relax.Expr, weight: str, bias: str = "") -> relax.Expr:
        out = self.bb.emit(R.matmul(x, self.weights[weight]))
        return self.bb.emit(R.add(out, self.weights[bias])) if bias else out

    def parts(self, x: relax.Expr, count: int) -> list[relax.Expr]:
        """Equal parts of the last axis."""
        whole = self.bb.emit(R.split(x, count, axis=-1))
        return [self.bb.emit(relax.TupleGetItem(whole, k)) for k in range(count)]

    def act(self, index: int, x: relax.Expr) -> relax.Expr:
        return self.bb.emit(self.functions[index](x))

    def add(self, a: relax.Expr, b: relax.Expr) -> relax.Expr:
        return self.bb.emit(R.add(a, b))

    def multiply(self, a: relax.Expr, b: relax.Expr) -> relax.Expr:
        return self.bb.emit(R.multiply(a, b))


def lstm_step(cell: Cell, x: relax.Expr, state: State) -> State:
    """``c = f * c + i * g``, ``h = o * tanh(c)``."""
    h, c = state
    i, o, f, g = cell.parts(cell.add(cell.dense(h, "r"), x), 4)
    c = cell.add(cell.multiply(cell.act(0, f), c), cell.multiply(cell.act(0, i), cell.act(1, g)))
    return cell.multiply(cell.act(0, o), cell.act(2, c)), c


def rnn_step(cell: Cell, x: relax.Expr, state: State) -> State:
    return (cell.act(0, cell.add(cell.dense(state[0], "r"), x)),)


def gru_step(cell: Cell, x: relax.Expr, state: State) -> State:
    """``h = n + z * (h - n)`` with ``n = tanh(x + (r * h) R')``: the reset gate before the product."""
    (h,) = state
    xz, xr, xn = cell.parts(x, 3)
    hz, hr = cell.parts(cell.dense(h, "zr"), 2)
    z, r = cell.act(0, cell.add(hz, xz)), cell.act(0, cell.add(hr, xr))
    n = cell.act(1, cell.add(cell.dense(cell.multiply(r, h), "n"), xn))
    return (cell.add(n, cell.multiply(z, cell.bb.emit(R.subtract(h, n)))),)


def gru_step_reset_after(cell: Cell, x: relax.Expr, state: State) -> State:
    """As ``gru_step`` with ``n = tanh(x + r * (h R' + b))``: the form that PyTorch writes."""
    (h,) = state
    xz, xr, xn = cell.parts(x, 3)
    hz, hr, hn = cell.parts(cell.dense(h, "r", "b"), 3)
    z, r = cell.act(0, cell.add(hz, xz)), cell.act(0, cell.add(hr, xr))
    n = cell.act(1, cell.add(cell.multiply(r, hn), xn))
    return (cell.add(n, cell.multiply(z, cell.bb.emit(R.subtract(h, n)))),)


Weights = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], dict[str, np.ndarray]]
"""``weights(w, r, wb, rb)`` of one direction, as ONNX stores them, to the constants that its step reads."""


def one_bias(w: np.ndarray, r: np.ndarray, wb: np.ndarray, rb: np.ndarray) -> dict[str, np.ndarray]:
    return {"w": w.T, "wb": wb + rb, "r": r.T}


def new_gate_apart(w: np.ndarray, r: np.ndarray, wb: np.ndarray, rb: np.ndarray) -> dict[str, np.ndarray]:
    gates = 2 * r.shape[1]
    return {"w": w.T, "wb": wb + rb, "zr": r[:gates].T, "n": r[gates:].T}


def two_biases(w: np.ndarray, r: np.ndarray, wb: np.ndarray, rb: np.ndarray) -> dict[str, np.ndarray]:
    return {"w": w.T, "wb": wb, "r": r.T, "b": rb}


def lstm(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: Mapping[str, Any]) -> relax.Expr:
    return unrolled(bb, inputs, attrs, ("Sigmoid", "Tanh", "Tanh"), lstm_step, one_bias)


def rnn(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: Mapping[str, Any]) -> relax.Expr:
    return unrolled(bb, inputs, attrs, ("Tanh",), rnn_step, one_bias)


def gru(bb: relax.BlockBuilder, inputs: Sequence[Any], attrs: Mapping[str, Any]) -> relax.Expr:
    if attrs.get("linear_before_reset"):
        return unrolled(bb, inputs, attrs, ("Sigmoid", "Tanh"), gru_step_reset_after, two_biases)
    return unrolled(bb, inputs, attrs, ("Sigmoid", "Tanh"), gru_step, new_gate_apart)


def unrolled(
    bb: relax.BlockBuilder,
    inputs: Sequence[Any],
    attrs: Mapping[str, Any],
    functions: Sequence[str],
    step: Step,
    weights: Weights,
) -> relax.Expr:
    """All steps of all directions: ``(Y, Y_h[, Y_c])`` of ONNX.

    ``functions`` are the default activations of a direction.
    """
    batch_first = bool(attrs.get("layout", 0))
    x = bb.emit(R.permute_dims(inputs[0], [1, 0, 2])) if batch_first else inputs[0]
    steps, batch, size = sizes(x)
    directions, _, hidden = sizes(inputs[2])
    names = [name.decode() for name in attrs.get("activations", ())] or list(functions) * directions
    flat = bb.emit(R.reshape(x, [steps * batch, size]))
    w, r = value(inputs[1]), value(inputs[2])
    b = np.zeros([directions, 2 * r.shape[1]], w.dtype) if operand(inputs, 3) is None else value(inputs[3])
    count = 2 if step is lstm_step else 1
    outputs: list[relax.Expr] = []
    final: list[State] = []
    for d in range(directions):
        chosen = [ACTIVATIONS[name] for name in names[d * len(functions) : (d + 1) * len(functions)]]
        cell = Cell(bb, weights(w[d], r[d], *np.split(b[d], 2)), chosen)
        projected = bb.emit(R.reshape(cell.dense(flat, "w", "wb"), [steps, batch, -1]))
        state = tuple(initial(bb, operand(inputs, 5 + k), d, batch_first, (batch, hidden), w.dtype) for k in range(count))
        hs: list[relax.Expr] = [state[0]] * steps
        backwards = d == 1 or attrs.get("direction") == b"reverse"
        for t in reversed(range(steps)) if backwards else range(steps):
            state = step(cell, bb.emit(R.take(projected, relax.const(t, "int64"), axis=0)), state)
            hs[t] = state[0]
        outputs.append(stacked(bb, hs, (1, 1, batch, hidden), 0))
        final.append(state)
    whole = stacked(bb, outputs, (steps, 1, batch, hidden), 1)
    last = [stacked(bb, [state[k] for state in final], (1, batch, hidden), 0) for k in range(count)]
    if batch_first:
        whole = bb.emit(R.permute_dims(whole, [2, 0, 1, 3]))
        last = [bb.emit(R.permute_dims(t, [1, 0, 2])) for t in last]
    return relax.Tuple([whole, *last])


def initial(bb: relax.BlockBuilder, x: Any, d: int, batch_first: bool, shape: tuple[int, int], dtype: Any) -> relax.Expr:
    """The state that a direction starts with, [batch, hidden]; zeros when it is left out."""
    if x is None:
        return relax.const(np.zeros(shape, dtype))
    if isinstance(x, GenericConst):
        return relax.const(np.ascontiguousarray(value(x).take(d, 1 if batch_first else 0)))
    return bb.emit(R.take(x, relax.const(d, "int64"), axis=1 if batch_first else 0))


def stacked(bb: relax.BlockBuilder, parts: Sequence[relax.Expr], shape: Sequence[int], axis: int) -> relax.Expr:
    """Tensors, reshaped to ``shape`` each, one after the other along ``axis``."""
    level = [bb.emit(R.reshape(part, shape)) for part in parts]
    while len(level) > 1:
        groups = [level[k : k + FAN_IN] for k in range(0, len(level), FAN_IN)]
        level = [bb.emit(R.concat(group, axis)) if len(group) > 1 else group[0] for group in groups]
    return level[0]


RECURRENT = {"GRU": gru, "LSTM": lstm, "RNN": rnn}
"""Converters by operator."""
