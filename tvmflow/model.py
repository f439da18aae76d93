"""Model: a network on its way through the flow, as a Relax module plus what Relax does not keep."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tvm import IRModule


@dataclass(frozen=True)
class TensorInfo:
    """Name, shape and dtype of one input or output as the user knows it."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Model:
    """A network at one stage of the flow.

    ``module["main"]`` is a Relax function with static shapes and a single dataflow block. Its parameters are ``inputs`` in
    order; it returns one tensor, or a tuple when there are several ``outputs``. The name of a binding's variable is the name
    of the original layer (ONNX node or output tensor, torch FX node), unchanged, slashes included: passes that rewrite a
    binding keep its variable's name, so that every later report speaks the user's language.
    """

    module: IRModule
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    name: str
    sha256: str = ""
    """Content hash of the source file, or of the exported program."""
    history: tuple[str, ...] = ()
    """Names of the stages run so far."""

    def then(self, stage: str, module: IRModule) -> Model:
        """The model after ``stage`` turned its module into ``module``."""
        return replace(self, module=module, history=(*self.history, stage))
