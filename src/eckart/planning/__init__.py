"""What a fine-tune will cost: simulated on tensors that hold no data, or estimated where only a count is known."""

from eckart.planning.advise import Advice, Reason, Step
from eckart.planning.counts import AdapterCount, Outline
from eckart.planning.estimate import Estimate, MethodMemory, estimate
from eckart.planning.forecast import Forecast
from eckart.planning.memory import Memory
from eckart.planning.plan import Checked, Plan, check, plan
from eckart.planning.presets import Preset, find_preset, presets
from eckart.planning.setting import PlanSetting
from eckart.planning.simulate import simulate
from eckart.planning.simulation import Simulation, SimulationError

__all__ = [
    "AdapterCount",
    "Advice",
    "Checked",
    "Estimate",
    "Forecast",
    "Memory",
    "MethodMemory",
    "Outline",
    "Plan",
    "PlanSetting",
    "Preset",
    "Reason",
    "Simulation",
    "SimulationError",
    "Step",
    "check",
    "estimate",
    "find_preset",
    "plan",
    "presets",
    "simulate",
]
