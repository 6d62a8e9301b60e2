"""Training of language models on text."""

from eckart.training.data import DataOptions, TrainingData, load_data
from eckart.training.distill import DistillResult, distill
from eckart.training.distillation import Distillation
from eckart.training.dynamics import DynamicsRecorder, recording_steps
from eckart.training.finetune import FinetuneResult, FinetuneSettings, StepCallback, fast_dtype, finetune
from eckart.training.health import DivergenceError
from eckart.training.result import TrainResult
from eckart.training.rundir import is_writer, part
from eckart.training.sequences import pack_texts
from eckart.training.settings import TrainSettings
from eckart.training.sweep import sweep
from eckart.training.sweep_grid import SweepGrid
from eckart.training.sweep_result import Sweep, SweepCell
from eckart.training.train import train
from eckart.training.trajectory import Dynamics, read_dynamics
from eckart.training.watching import TrainingInterrupted, Watcher

__all__ = [
    "DataOptions",
    "DistillResult",
    "Distillation",
    "DivergenceError",
    "Dynamics",
    "DynamicsRecorder",
    "FinetuneResult",
    "FinetuneSettings",
    "StepCallback",
    "Sweep",
    "SweepCell",
    "SweepGrid",
    "TrainResult",
    "TrainSettings",
    "TrainingData",
    "TrainingInterrupted",
    "Watcher",
    "distill",
    "fast_dtype",
    "finetune",
    "is_writer",
    "load_data",
    "pack_texts",
    "part",
    "read_dynamics",
    "recording_steps",
    "sweep",
    "train",
]
