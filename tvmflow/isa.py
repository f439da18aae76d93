"""CPU features: the compiler's names for them and Linux' names.

An artifact may use whatever its target's ``mcpu`` and ``mattr`` let LLVM use, so the target's ``features`` have to name all of
that. Listed here are the features for which LLVM chooses instructions on its own. Left out are those that only privileged code
or an explicit intrinsic uses (cache control, random numbers, AMX tiles, SHA, memory tagging), of which our kernels call none.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec

from tvmflow.errors import ConfigError, nearest

if TYPE_CHECKING:
    import tvm


LINUX: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "sse3": ("pni",),
        "ssse3": ("ssse3",),
        "sse4.1": ("sse4_1",),
        "sse4.2": ("sse4_2",),
        "sse4a": ("sse4a",),
        "popcnt": ("popcnt",),
        "cx16": ("cx16",),
        "sahf": ("lahf_lm",),
        "movbe": ("movbe",),
        "lzcnt": ("abm",),
        "bmi": ("bmi1",),
        "bmi2": ("bmi2",),
        "adx": ("adx",),
        "aes": ("aes",),
        "pclmul": ("pclmulqdq",),
        "vaes": ("vaes",),
        "vpclmulqdq": ("vpclmulqdq",),
        "gfni": ("gfni",),
        "avx": ("avx",),
        "f16c": ("f16c",),
        "fma": ("fma",),
        "avx2": ("avx2",),
        "avxvnni": ("avx_vnni",),
        "avxvnniint8": ("avx_vnni_int8",),
        "avxvnniint16": ("avx_vnni_int16",),
        "avxifma": ("avx_ifma",),
        "avxneconvert": ("avx_ne_convert",),
        "avx512f": ("avx512f",),
        "avx512bw": ("avx512bw",),
        "avx512cd": ("avx512cd",),
        "avx512dq": ("avx512dq",),
        "avx512vl": ("avx512vl",),
        "avx512ifma": ("avx512ifma",),
        "avx512vbmi": ("avx512vbmi",),
        "avx512vbmi2": ("avx512_vbmi2",),
        "avx512vnni": ("avx512_vnni",),
        "avx512bitalg": ("avx512_bitalg",),
        "avx512vpopcntdq": ("avx512_vpopcntdq",),
        "avx512bf16": ("avx512_bf16",),
        "avx512fp16": ("avx512_fp16",),
        "avx512vp2intersect": ("avx512_vp2intersect",),
        "xop": ("xop",),
        "fma4": ("fma4",),
        "tbm": ("tbm",),
    },
    "aarch64": {
        "fp-armv8": ("fp",),
        "neon": ("asimd",),
        "crc": ("crc32",),
        "aes": ("aes", "pmull"),
        "sha2": ("sha1", "sha2"),
        "lse": ("atomics",),
        "rdm": ("asimdrdm",),
        "fullfp16": ("fphp", "asimdhp"),
        "rcpc": ("lrcpc",),
        "dotprod": ("asimddp",),
        "fp16fml": ("asimdfhm",),
        "jsconv": ("jscvt",),
        "complxnum": ("fcma",),
        "sha3": ("sha3", "sha512"),
        "sm4": ("sm3", "sm4"),
        "rcpc-immo": ("ilrcpc",),
        "lse2": ("uscat",),
        "flagm": ("flagm",),
        "altnzcv": ("flagm2",),
        "fptoint": ("frint",),
        "i8mm": ("i8mm",),
        "bf16": ("bf16",),
        "sve": ("sve",),
        "sve2": ("sve2",),
        "pauth": ("paca", "pacg"),
    },
    "armv7": {
        "neon": ("neon",),
        "vfp3": ("vfpv3",),
        "vfp4": ("vfpv4",),
        "hwdiv-arm": ("idiva",),
        "hwdiv": ("idivt",),
    },
}
"""LLVM's feature -> Linux' names, for each architecture."""


def implied_features(host: tvm.target.Target) -> set[str]:
    """LLVM's features of a host target: what ``mcpu`` brings and ``mattr`` adds or takes away, in LLVM's spelling."""
    from tvm.target import codegen

    return {str(name) for name in codegen.llvm_get_cpu_features(host)}


def linux_features(host: tvm.target.Target) -> tuple[str, ...]:
    """Linux' names of the features that code for ``host`` may use."""
    implied = implied_features(host)
    names = LINUX[str(host.attrs["mtriple"]).split("-")[0]]
    return tuple(linux for llvm, group in names.items() if llvm in implied for linux in group)


@lru_cache
def checked_host(name: str, options: bytes, features: tuple[str, ...]) -> tvm.target.Target:
    """The TVM target of ``options`` (JSON), after asking LLVM whether it means what the target file says.

    TVM takes a misspelt CPU in silence, and a CPU that implies more than ``features`` is an illegal instruction on the board.
    """
    import tvm
    from tvm.target import codegen

    where = f"target {name}"
    given = msgspec.json.decode(options)
    arch = str(given["mtriple"]).split("-")[0]
    if arch not in LINUX:
        raise ConfigError(f"unknown architecture {arch!r} in tvm.mtriple", where=where, remedy=nearest(arch, LINUX))
    if not codegen.llvm_is_valid_cpu(given["mcpu"], given["mtriple"]):
        plain = tvm.target.Target({"kind": "llvm", "mtriple": given["mtriple"]})
        known = [str(cpu) for cpu in codegen.llvm_get_cpu_archlist(plain)]
        raise ConfigError(f"LLVM knows no {arch} CPU {given['mcpu']!r}", where=where, remedy=nearest(given["mcpu"], known))
    try:
        host = tvm.target.Target(given)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"TVM rejects the table [tvm]: {str(error).splitlines()[-1]}", where=where) from error
    implied = implied_features(host)
    for attribute in given.get("mattr", ()):
        if attribute[:1] not in ("+", "-") or (attribute[0] == "+") != (attribute[1:] in implied):
            raise ConfigError(
                f"LLVM does not take the attribute {attribute!r} for {given['mcpu']}",
                where=where,
                remedy=nearest(attribute.lstrip("+-"), LINUX[arch]),
            )
    undeclared = [feature for feature in linux_features(host) if feature not in features]
    if undeclared:
        raise ConfigError(
            f"code for {given['mcpu']} may use {', '.join(undeclared)}, which `features` does not list",
            where=where,
            remedy="add them to `features`, or take them away with tvm.mattr",
        )
    return host
