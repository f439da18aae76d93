"""From a scheduled Relax module to a Relax VM executable: the literal list of lowering passes, then code generation."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax

from tvmflow.build import cuda
from tvmflow.schedule.cuda_generic import with_identifiers
from tvmflow.schedule.generic import schedule_generic
from tvmflow.target import Target


@dataclass(frozen=True)
class Built:
    """A Relax VM executable, and the functions in it that no template emitted."""

    executable: Any
    generic: tuple[str, ...]


def lowering(target: Target, generic: list[str]) -> list[Any]:
    """The passes from Relax with scheduled kernels to what the VM's code generator takes, in order.

    Names of functions that no template emitted are appended to ``generic``.
    """

    @tvm.transform.module_pass(opt_level=0, name="ScheduleGeneric")
    def schedule_rest(module: tvm.IRModule, _context: Any) -> tvm.IRModule:
        module, names = schedule_generic(module, target)
        generic.extend(names)
        return module

    return [
        # float islands and data movement become loops, neighbours fuse, and each loop nest is scheduled
        relax.transform.LegalizeOps(skip_ops=["relax.reshape"]),  # a reshape is a view, not a copy
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(["main"]),
        schedule_rest,
        # tensors become views of planned storage, calls become VM instructions
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


def compile_module(module: tvm.IRModule, target: Target) -> Built:
    """Generates code for ``module``. Kernel calls must have been scheduled.

    Raises MissingTool when the target needs a CUDA compiler and there is none.
    """
    device = target.device()
    generic: list[str] = []
    environment = cuda.compiler_environment() if target.cuda else nullcontext()
    config = {"tirx.disable_assert": True, **(cuda.PASS_CONFIG if target.cuda else {})}
    with environment, device, tvm.transform.PassContext(opt_level=3, config=config):
        named = with_identifiers(module) if target.cuda else module
        lowered = tvm.transform.Sequential(lowering(target, generic))(named)
        executable = relax.build(lowered, device, relax_pipeline=tvm.transform.Sequential([]))
    if target.cuda:
        cuda.expect_machine_code(executable.mod)
    return Built(executable, tuple(generic))
