"""Rules that remember samples and learn them again: real data are kept."""

from cl_callbacks.rules.rehearsal.dark_experience_replay import DarkExperienceReplay
from cl_callbacks.rules.rehearsal.experience_replay import ExperienceReplay
from cl_callbacks.rules.rehearsal.sample_memory import SampleMemory

__all__ = ["DarkExperienceReplay", "ExperienceReplay", "SampleMemory"]
