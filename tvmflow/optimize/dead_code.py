"""Dead code: functions that ``main`` does not reach leave the module.

::

    Before:  module with main, maximum, maximum1, pad        After:  module with main, pad
             y = R.call_tir(pad, (x,))                               y = R.call_tir(pad, (x,))

1. Loop nests and Relax functions that no call reaches. Bindings nobody reads are dropped by every pass already.
"""

from __future__ import annotations

import tvm
from tvm import relax

REQUIRES = ("static shapes",)
ENSURES = ("no dead code",)


def run(module: tvm.IRModule) -> tvm.IRModule:
    return relax.transform.DeadCodeElimination(["main"])(module)
