"""The targets whose code tests run here: this machine's own, and AVX2 with VNNI by a mask.

CPUs with AVX-512 VNNI run the 256-bit dot product of AVX-VNNI in another encoding. Code for the
target is the same but for that encoding (registers stay 256 bits wide), so that a machine which
lacks AVX-VNNI itself still runs it. `TARGETS` replaces the table of names where engines are built.
"""

from __future__ import annotations

from dataclasses import replace

from tidemill.base.target import X86_64_V3, X86_64_V3_VNNI, Target, host_features, host_targets

_MASKED = replace(
    X86_64_V3_VNNI,
    features="+avx512vl,+avx512vnni",
    required=X86_64_V3.required | {"avx512vl", "avx512_vnni"},
)


def _runnable() -> dict[str, Target]:
    own = {target.name: target for target in host_targets()}
    masked = {_MASKED.name: _MASKED} if _MASKED.required <= host_features() else {}
    return masked | own


# Best first, as detection prefers them.
TARGETS = dict(sorted(_runnable().items(), key=lambda item: -len(item[1].required)))
