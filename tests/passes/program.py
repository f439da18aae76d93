"""Programs of a pass test: ``@program`` makes the body of a function, written in TVMScript, the ``main`` of a module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax
from tvm.script import relax as R


def program(function: Callable[..., Any]) -> tvm.IRModule:
    """The module whose ``main`` is ``function``, its body one dataflow block: the form of the optimizer's programs."""
    main = R.function(function).with_attr("global_symbol", "main")
    return relax.transform.ConvertToDataflow(min_size=1)(tvm.IRModule({"main": main}))


program.dispatch_token = "relax"  # type: ignore[attr-defined]  # the name by which TVM's parser knows the language
