"""How the steps of a method are taken: plainly, or as CUDA graphs. An executor knows a stepper, no concrete method."""

from invfast.executors.base import Executor, Plain
from invfast.executors.captured import SHORTEST, Captured
from invfast.executors.graphs import Recorder, cuda_graphs

__all__ = ["SHORTEST", "Captured", "Executor", "Plain", "Recorder", "cuda_graphs"]
