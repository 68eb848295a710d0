"""All checks, the most important first."""

from __future__ import annotations

from gpu_checks import (
    compiled,
    correctness,
    layouts,
    offload,
    precision,
    processes,
    resuming,
    speed,
    waits,
)
from gpu_checks.check import Check

# Each with its share of the eight minutes of an H200.
CHECKS = [
    Check(correctness.as_on_the_cpu, 20),
    Check(correctness.repeatable, 15),
    Check(offload.state_on_the_cpu, 15),
    Check(offload.read_right_after_a_step, 5),
    Check(precision.overflow_under_16_mixed, 10),
    Check(processes.ddp, 45),
    Check(resuming.resumed_exactly, 15),
    Check(waits.waits_of_rules, 15),
    Check(waits.waits_of_boundaries, 5),
    Check(processes.fsdp2, 30),
    Check(layouts.recurrent, 8),
    Check(layouts.recurrent_with_precision_flags, 4),
    Check(layouts.channels_last, 10),
    Check(offload.statistics_of_offloaded_state, 12),
    Check(precision.fused_optimizer, 12),
    Check(resuming.checkpoints_both_ways, 20),
    Check(correctness.random_numbers, 10),
    Check(correctness.fits_in_a_row, 12),
    Check(correctness.drift, 5),
    Check(precision.matmul_precision, 6),
    Check(precision.deterministic, 8),
    Check(offload.state_takes_no_memory_of_the_device, 5),
    Check(precision.memory_of_a_measurement, 6),
    Check(layouts.two_devices, 10),
    Check(speed.speed_of_ewc, 20),
    Check(speed.speed_of_si, 40),
    Check(speed.speed_of_mesu, 45),
    Check(speed.speed_of_benna_fusi, 20),
    Check(speed.speed_of_the_fisher, 12),
    Check(compiled.compile_rules, 25),
    Check(compiled.cuda_graphs, 15),
]
