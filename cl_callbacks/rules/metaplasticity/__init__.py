"""Rules that rewrite the update: the plasticity of a synapse depends on its history."""

from cl_callbacks.rules.metaplasticity.benna_fusi import BennaFusi
from cl_callbacks.rules.metaplasticity.bgd import BGD
from cl_callbacks.rules.metaplasticity.cascade import Cascade
from cl_callbacks.rules.metaplasticity.mesu import MESU
from cl_callbacks.rules.metaplasticity.metaplastic_gate import MetaplasticGate

__all__ = ["BGD", "MESU", "BennaFusi", "Cascade", "MetaplasticGate"]
