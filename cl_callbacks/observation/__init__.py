"""Observation of training: scores on every task, the state of synapses, plasticity. Changes nothing in it."""

from cl_callbacks.observation.plasticity_probe import PlasticityProbe
from cl_callbacks.observation.synapse_statistics import SynapseStatistics
from cl_callbacks.observation.task_evaluation import TaskEvaluation

__all__ = ["PlasticityProbe", "SynapseStatistics", "TaskEvaluation"]
