"""TVM's C++ runtime, without TVM's Python package.

``import tvm`` maps the compiler and defines the classes of its IR: 0.6 s and 150 MB. A session needs a loader, a virtual machine
and tensors, all of which the runtime's libraries offer to ``tvm_ffi`` by name. Who imports ``tvm`` before or after gets the same
libraries.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmflow.errors import EnvironmentProblem

if TYPE_CHECKING:
    import numpy as np

LIBRARIES = ("tvm_runtime", "tvm_runtime_extra")
"""The virtual machine and its thread pool; sorting, which few programs call."""
EXISTS = 0
"""The first of a device's attributes (tvm/runtime/device_api.h, DeviceAttrKind)."""
POOLED = 2
"""Allocator of the virtual machine that keeps memory from one run to the next (tvm/runtime/vm.py)."""


def load_runtime() -> None:
    """Load TVM's runtime into this process; nothing happens when it is there. Raises EnvironmentProblem."""
    try:
        with _torch_stays_out():
            import tvm_ffi  # noqa: F401 - its library comes before those that need it
        for library in LIBRARIES:
            _load(library)
    except (ImportError, OSError) as error:
        raise EnvironmentProblem(f"TVM's runtime can't be loaded: {error}", remedy="see `tvmflow doctor`") from error


def _load(library: str) -> None:
    package = importlib.util.find_spec("tvm")
    if package is None or package.origin is None:
        raise ImportError("the package apache-tvm is not installed")
    path = Path(package.origin).parent / "lib" / f"lib{library}.so"
    ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL if library == LIBRARIES[0] else ctypes.RTLD_LOCAL)


def find_device(name: str) -> Any:
    """The first device of a kind, ``cpu`` or ``cuda``. Raises EnvironmentProblem when the machine has none."""
    import tvm_ffi

    problem = EnvironmentProblem(f"no {name} device in this machine", remedy="see `tvmflow doctor`")
    if name != "cpu":
        try:
            _load(f"tvm_runtime_{name}")
        except OSError as error:  # the driver's library is not there
            raise problem from error
    device = tvm_ffi.device(name, 0)
    if not function("runtime.GetDeviceAttr")(device.dlpack_device_type(), device.index, EXISTS):
        raise problem
    return device


def waiting_for(device: Any) -> Callable[[], object]:
    """A function that returns when the device has finished what it was given."""
    if device.type == "cpu":
        return lambda: None
    synchronize = function("runtime.Device_StreamSync")
    return lambda: synchronize(device, 0)


def function(name: str) -> Callable[..., Any]:
    """A function that the runtime has registered."""
    import tvm_ffi

    return tvm_ffi.get_global_func(name)


def start_machine(module: Any, device: Any) -> Any:
    """A virtual machine for a loaded module: a module whose functions are its methods. Shapes are always computed on the CPU."""
    import tvm_ffi

    machine = module["vm_load_executable"]()
    devices = [device] if device.type == "cpu" else [device, tvm_ffi.device("cpu", 0)]
    machine["vm_initialization"](*(value for d in devices for value in (d.dlpack_device_type(), d.index, POOLED)))
    return machine


def bind(machine: Any, function: str, tensors: Sequence[Any]) -> str:
    """Name under which a virtual machine from now on runs one of its functions with these inputs, handing nothing out."""
    name = f"tvmflow.bound.{function}"
    machine["save_function"](function, name, 0, *tensors)
    return name


def empty(shape: tuple[int, ...], dtype: str, device: Any) -> Any:
    """A tensor on a device, where the program reads and writes aligned memory."""
    import tvm_ffi

    return function("runtime.TVMTensorAllocWithScope")(tvm_ffi.Shape(shape), tvm_ffi.dtype(dtype), device, None)


def address(array: np.ndarray) -> ctypes.c_void_p:
    """Where a contiguous array lies, as the runtime's functions take it."""
    return ctypes.c_void_p(array.ctypes.data)


@contextmanager
def _torch_stays_out() -> Iterator[None]:
    """This thread does not import torch, unless the process has it.

    ``tvm_ffi`` imports torch wherever it is installed, because of a clash of symbols on Windows: 0.8 s and 180 MB. Numpy's
    DLPack takes torch's tensors as well. Who wants ``tvm_ffi``'s own way of taking them imports torch first.
    """
    caller = threading.get_ident()

    class Refuse:
        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            if name == "torch" and threading.get_ident() == caller:
                raise ModuleNotFoundError("torch is not needed here", name=name)

    finder: Any = Refuse
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
