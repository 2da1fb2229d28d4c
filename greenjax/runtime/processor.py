"""What the processor of this machine can do. Nothing here imports JAX."""

import os
from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


@cache
def features() -> frozenset[str]:
    """The instruction sets of an x86 processor, by Linux's names; none on other systems."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


def multiplies_bfloat16() -> bool:
    """Does the processor have instructions for products of bfloat16 numbers? On others, XLA computes in float32."""
    return not features().isdisjoint(("avx512_bf16", "amx_bf16"))


def allow_amx() -> None:
    """Lets XLA use AMX, which by default it does not use fully. To be called before JAX finds its devices."""
    flags = os.environ.get("XLA_FLAGS", "")
    if "amx_bf16" in features() and "xla_cpu_max_isa" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_max_isa=AMX_FP16".strip()
