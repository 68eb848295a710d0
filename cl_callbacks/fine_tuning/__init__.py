"""Pretrained transformers, fine-tuned on one task after the other."""

from cl_callbacks.fine_tuning.sequential_fine_tuner import SequentialFineTuner

__all__ = ["SequentialFineTuner"]
