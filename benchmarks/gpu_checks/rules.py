"""Every rule, with strengths that show within three short tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cl_callbacks import (
    BGD,
    EWC,
    MAS,
    MESU,
    BennaFusi,
    Cascade,
    KFACLaplace,
    MetaplasticGate,
    RWalk,
    StreamingConsolidation,
    SynapticIntelligence,
)

# Rules without random numbers, which depend on the device.
PLAIN: dict[str, Callable[..., Any]] = {
    "EWC": lambda **o: EWC(1.0, **o),
    "EWC, each": lambda **o: EWC(1.0, anchors="each", decay=0.9, **o),
    "SI": lambda **o: SynapticIntelligence(1.0, damping=1e-3, **o),
    "MAS": lambda **o: MAS(1.0, **o),
    "RWalk": lambda **o: RWalk(1.0, window_steps=3, **o),
    "KFACLaplace": lambda **o: KFACLaplace(1.0, **{"estimator": "exact"} | o),
    "KFACLaplace, proximal": lambda **o: KFACLaplace(1.0, proximal=True, **{"estimator": "exact"} | o),
    "Streaming, fisher": lambda **o: StreamingConsolidation(1.0, measure="fisher", **o),
    "Streaming, path": lambda **o: StreamingConsolidation(1.0, measure="path", **o),
    "BennaFusi": lambda **o: BennaFusi(4, 0.2, **o),
    "MetaplasticGate": lambda **o: MetaplasticGate(5.0, **o),
}
DRAWN: dict[str, Callable[..., Any]] = {
    "BGD": lambda **o: BGD(0.1, **o),
    "MESU": lambda **o: MESU(100, 0.2, **o),
    "MESU, 2 draws": lambda **o: MESU(100, 0.2, draws=2, **o),
    "MESU, chain": lambda **o: MESU(100, 0.2, prior="chain", beakers=3, coupling=0.1, **o),
    "Cascade": lambda **o: Cascade(3, **o),
}
RULES = PLAIN | DRAWN
STATELESS = {"MetaplasticGate"}
