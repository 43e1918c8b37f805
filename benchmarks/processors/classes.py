"""Classes of processors, and how a larger one poses as each: what torch, oneDNN, MKL and our compiler may not see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kalm_cache.model.kernels.compile import MARCH
from kalm_cache.model.precision import cpu_capabilities


@dataclass(frozen=True, slots=True)
class ProcessorClass:
    """A class: the capability of torch's that makes a processor one of it, and the environment that hides all above."""

    name: str
    needs: str
    environment: Mapping[str, str]


CLASSES = {
    each.name: each
    for each in (
        ProcessorClass("amx", "amx_int8", {}),
        ProcessorClass("avx512-bf16", "avx512_bf16", {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16", MARCH: "cooperlake"}),
        ProcessorClass("avx512-vnni", "avx512_vnni", {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI", MARCH: "cascadelake"}),
        ProcessorClass(
            "avx2",
            "avx2",
            {
                "ATEN_CPU_CAPABILITY": "avx2",
                "ONEDNN_MAX_CPU_ISA": "AVX2",
                "MKL_ENABLE_INSTRUCTIONS": "AVX2",
                MARCH: "x86-64-v3",
            },
        ),
    )
}


def classes_here() -> list[str]:
    """The names of those that this processor is, or can pose as; the largest first."""
    capabilities = cpu_capabilities()
    return [each.name for each in CLASSES.values() if capabilities.get(each.needs)]
