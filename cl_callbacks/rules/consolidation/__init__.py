"""Rules that measure importance and pull important weights back."""

from cl_callbacks.rules.consolidation.ewc import EWC
from cl_callbacks.rules.consolidation.kfac_laplace import KFACLaplace
from cl_callbacks.rules.consolidation.l2sp import L2SP
from cl_callbacks.rules.consolidation.mas import MAS
from cl_callbacks.rules.consolidation.rwalk import RWalk
from cl_callbacks.rules.consolidation.streaming_consolidation import StreamingConsolidation
from cl_callbacks.rules.consolidation.synaptic_intelligence import SynapticIntelligence

__all__ = ["EWC", "L2SP", "MAS", "KFACLaplace", "RWalk", "StreamingConsolidation", "SynapticIntelligence"]
