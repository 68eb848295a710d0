"""PyTorch Lightning callbacks for continual learning."""

from cl_callbacks.boundaries import (
    BatchBoundaries,
    DriftBoundaries,
    EpochBoundaries,
    FitBoundaries,
    PlateauBoundaries,
    TaskBoundaries,
)
from cl_callbacks.data import ImageTasks, TaskSequence, TextTasks, VisionTasks
from cl_callbacks.fine_tuning import SequentialFineTuner
from cl_callbacks.metrics import (
    AverageAccuracy,
    BackwardTransfer,
    Forgetting,
    ForwardTransfer,
    Intransigence,
    LastTasksAccuracy,
    LearningAccuracy,
    TaskMatrixMetric,
)
from cl_callbacks.observation import SynapseStatistics, TaskEvaluation
from cl_callbacks.rules.compile_rules import CompileRules
from cl_callbacks.rules.consolidation import (
    EWC,
    MAS,
    KFACLaplace,
    RWalk,
    StreamingConsolidation,
    SynapticIntelligence,
)
from cl_callbacks.rules.metaplasticity import BGD, MESU, BennaFusi, Cascade, MetaplasticGate
from cl_callbacks.rules.synaptic_callback import SynapticCallback
from cl_callbacks.training.seed_epochs import SeedEpochs

__version__ = "0.1.0"

__all__ = [
    "BGD",
    "EWC",
    "MAS",
    "MESU",
    "AverageAccuracy",
    "BackwardTransfer",
    "BatchBoundaries",
    "BennaFusi",
    "Cascade",
    "CompileRules",
    "DriftBoundaries",
    "EpochBoundaries",
    "FitBoundaries",
    "Forgetting",
    "ForwardTransfer",
    "ImageTasks",
    "Intransigence",
    "KFACLaplace",
    "LastTasksAccuracy",
    "LearningAccuracy",
    "MetaplasticGate",
    "PlateauBoundaries",
    "RWalk",
    "SeedEpochs",
    "SequentialFineTuner",
    "StreamingConsolidation",
    "SynapseStatistics",
    "SynapticCallback",
    "SynapticIntelligence",
    "TaskBoundaries",
    "TaskEvaluation",
    "TaskMatrixMetric",
    "TaskSequence",
    "TextTasks",
    "VisionTasks",
]
