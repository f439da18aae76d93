"""What the CPUID instruction denies: right under qemu-user, whose /proc/cpuinfo is the host's. Standard library only.

Asked through ``__x86_get_cpuid_feature_leaf`` of glibc >= 2.33. Bits from Intel's SDM volume 2A, CPUID; names are Linux'.
"""

from __future__ import annotations

import ctypes

_LEAF_1, _LEAF_7, _LEAF_7_1 = 0, 1, 6
_EAX, _EBX, _ECX, _EDX = range(4)
_BITS = {
    "ssse3": (_LEAF_1, _ECX, 9),
    "fma": (_LEAF_1, _ECX, 12),
    "sse4_1": (_LEAF_1, _ECX, 19),
    "sse4_2": (_LEAF_1, _ECX, 20),
    "popcnt": (_LEAF_1, _ECX, 23),
    "avx": (_LEAF_1, _ECX, 28),
    "f16c": (_LEAF_1, _ECX, 29),
    "bmi1": (_LEAF_7, _EBX, 3),
    "avx2": (_LEAF_7, _EBX, 5),
    "bmi2": (_LEAF_7, _EBX, 8),
    "avx512f": (_LEAF_7, _EBX, 16),
    "avx512dq": (_LEAF_7, _EBX, 17),
    "avx512ifma": (_LEAF_7, _EBX, 21),
    "avx512cd": (_LEAF_7, _EBX, 28),
    "avx512bw": (_LEAF_7, _EBX, 30),
    "avx512vl": (_LEAF_7, _EBX, 31),
    "avx512vbmi": (_LEAF_7, _ECX, 1),
    "avx512_vbmi2": (_LEAF_7, _ECX, 6),
    "avx512_vnni": (_LEAF_7, _ECX, 11),
    "avx512_bitalg": (_LEAF_7, _ECX, 12),
    "avx512_vpopcntdq": (_LEAF_7, _ECX, 14),
    "avx512_vp2intersect": (_LEAF_7, _EDX, 8),
    "amx_bf16": (_LEAF_7, _EDX, 22),
    "avx512_fp16": (_LEAF_7, _EDX, 23),
    "amx_tile": (_LEAF_7, _EDX, 24),
    "amx_int8": (_LEAF_7, _EDX, 25),
    "avx_vnni": (_LEAF_7_1, _EAX, 4),
    "avx512_bf16": (_LEAF_7_1, _EAX, 5),
}


class _Leaf(ctypes.Structure):
    """``struct cpuid_feature`` of glibc's sys/platform/x86.h: eax to edx as the CPU says, and what of it programs may use."""

    _fields_ = [("present", ctypes.c_uint32 * 4), ("active", ctypes.c_uint32 * 4)]


def denied_features() -> frozenset[str]:
    """x86 features that this CPU, or an emulator in its place, says it lacks; empty where the C library can't be asked."""
    try:
        leaf = ctypes.CDLL(None).__x86_get_cpuid_feature_leaf
    except AttributeError:
        return frozenset()
    leaf.restype, leaf.argtypes = ctypes.POINTER(_Leaf), [ctypes.c_uint]
    return frozenset(
        name for name, (index, register, bit) in _BITS.items() if not leaf(index).contents.present[register] >> bit & 1
    )
