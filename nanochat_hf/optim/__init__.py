"""MuonAdamW: Muon for the matrices inside the blocks, AdamW for the rest, one class for one process and for many."""

from .groups import build_optimizer, build_param_groups, fine_tuning_groups, parameter_roles, peak_rates
from .muon_adamw import MuonAdamW
from .schedules import Schedule, apply_schedule, set_learning_rates

__all__ = [
    "MuonAdamW",
    "Schedule",
    "apply_schedule",
    "build_optimizer",
    "build_param_groups",
    "fine_tuning_groups",
    "parameter_roles",
    "peak_rates",
    "set_learning_rates",
]
