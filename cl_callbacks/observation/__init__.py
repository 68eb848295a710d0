"""What a training shows of itself: scores on every task, and the state of the synapses."""

from cl_callbacks.observation.synapse_statistics import SynapseStatistics
from cl_callbacks.observation.task_evaluation import TaskEvaluation

__all__ = ["SynapseStatistics", "TaskEvaluation"]
