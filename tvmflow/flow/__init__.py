"""The journeys: everything that the command line and the Python interface do, each a function that reads top to bottom."""

from tvmflow.flow.compile import CompileReport, CompileResult, compile
from tvmflow.flow.measure import bench, evaluate, inspect, verify
from tvmflow.flow.quantize import QuantizeResult, quantize
from tvmflow.flow.tune import TuneResult, merge_logs, tune

__all__ = [
    "CompileReport",
    "CompileResult",
    "QuantizeResult",
    "TuneResult",
    "bench",
    "compile",
    "evaluate",
    "inspect",
    "merge_logs",
    "quantize",
    "tune",
    "verify",
]
