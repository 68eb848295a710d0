"""Observation of training: scores on every task, and the state of the synapses. Changes nothing in it."""

from cl_callbacks.observation.synapse_statistics import SynapseStatistics
from cl_callbacks.observation.task_evaluation import TaskEvaluation

__all__ = ["SynapseStatistics", "TaskEvaluation"]
