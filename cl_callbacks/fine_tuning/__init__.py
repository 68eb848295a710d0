"""Fine-tuning of pretrained transformers on a sequence of tasks. The rules belong in ``rules/``."""

from cl_callbacks.fine_tuning.sequential_fine_tuner import SequentialFineTuner

__all__ = ["SequentialFineTuner"]
