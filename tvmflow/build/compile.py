"""From a scheduled Relax module to a Relax VM executable: the literal list of lowering passes, then code generation."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from tvmflow.schedule.generic import schedule_generic
from tvmflow.target import Target


def lowering(target: Target) -> list[Any]:
    """The passes from Relax with scheduled kernels to what the VM's code generator takes, in order."""

    @tvm.transform.module_pass(opt_level=0, name="ScheduleGeneric")
    def generic(module: tvm.IRModule, _context: Any) -> tvm.IRModule:
        return schedule_generic(module, target)

    return [
        # float islands and data movement become loops, neighbours fuse, and each loop nest is scheduled
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        generic,
        # tensors become views of planned storage, calls become VM instructions
        relax.transform.RewriteDataflowReshape(),
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        relax.transform.StaticPlanBlockMemory(),
        relax.transform.LowerAllocTensor(),
        relax.transform.KillAfterLastUse(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        relax.transform.AttachGlobalSymbol(),
    ]


def compile_module(module: tvm.IRModule, target: Target) -> Any:
    """Relax VM executable of ``module`` for ``target``. Kernel calls must have been scheduled."""
    device = target.device()
    with device, tvm.transform.PassContext(opt_level=3):
        lowered = tvm.transform.Sequential(lowering(target))(module)
        return relax.build(lowered, device, relax_pipeline=tvm.transform.Sequential([]))
