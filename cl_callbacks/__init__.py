"""PyTorch Lightning callbacks for continual learning."""

# fmt: off
# isort: off
from cl_callbacks.boundaries import (
    BatchBoundaries, DriftBoundaries, EpochBoundaries, FitBoundaries, PlateauBoundaries, TaskBoundaries,
)
from cl_callbacks.data import ImageTasks, MultiHead, TaskSequence, TextTasks, VisionTasks
from cl_callbacks.fine_tuning import SequentialFineTuner
from cl_callbacks.gradients import fisher_information
from cl_callbacks.metrics import (
    AverageAccuracy, BackwardTransfer, Forgetting, ForwardTransfer, Intransigence, LastTasksAccuracy,
    LearningAccuracy, TaskMatrixMetric,
)
from cl_callbacks.observation import PlasticityProbe, SynapseStatistics, TaskEvaluation
from cl_callbacks.retention import RetentionGuard
from cl_callbacks.rules.averaging import WeightMerging
from cl_callbacks.rules.compile_rules import CompileRules
from cl_callbacks.rules.consolidation import (
    EWC, L2SP, MAS, KFACLaplace, RWalk, StreamingConsolidation, SynapticIntelligence,
)
from cl_callbacks.rules.distillation import Distillation
from cl_callbacks.rules.metaplasticity import BGD, MESU, BennaFusi, Cascade, MetaplasticGate
from cl_callbacks.rules.rehearsal import DarkExperienceReplay, ExperienceReplay, SampleMemory
from cl_callbacks.rules.renewal import (
    FIRE, UPGD, ContinualBackprop, L2Init, ReDo, SelfNormalizedResets, ShrinkAndPerturb,
)
from cl_callbacks.rules.synaptic_callback import SynapticCallback
from cl_callbacks.synapses.step import Need, Step
from cl_callbacks.synapses.view import SynapseView
from cl_callbacks.training.same_state_key import refuse_same_state_keys
from cl_callbacks.training.seed_epochs import SeedEpochs
from cl_callbacks.training.state_from_processes import bring_state_back
from cl_callbacks.tuning import FoundStrength, StrengthFinder, find_strength

bring_state_back()
refuse_same_state_keys()

__version__ = "0.2.0"

__all__ = [
    "BGD", "EWC", "FIRE", "L2SP", "MAS", "MESU", "UPGD", "AverageAccuracy", "BackwardTransfer",
    "BatchBoundaries", "BennaFusi", "Cascade", "CompileRules", "ContinualBackprop", "DarkExperienceReplay",
    "Distillation", "DriftBoundaries", "EpochBoundaries", "ExperienceReplay", "FitBoundaries", "Forgetting",
    "ForwardTransfer", "FoundStrength", "ImageTasks", "Intransigence", "KFACLaplace", "L2Init",
    "LastTasksAccuracy", "LearningAccuracy", "MetaplasticGate", "MultiHead", "Need",
    "PlasticityProbe", "PlateauBoundaries", "RWalk", "ReDo", "RetentionGuard", "SampleMemory", "SeedEpochs",
    "SelfNormalizedResets", "SequentialFineTuner", "ShrinkAndPerturb", "Step", "StreamingConsolidation",
    "StrengthFinder", "SynapseStatistics", "SynapseView", "SynapticCallback", "SynapticIntelligence",
    "TaskBoundaries", "TaskEvaluation", "TaskMatrixMetric", "TaskSequence", "TextTasks", "VisionTasks",
    "WeightMerging", "find_strength", "fisher_information",
]
