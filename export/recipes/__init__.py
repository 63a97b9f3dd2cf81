"""Training recipes of the bundled weights: `names`, `train`, `evaluate`."""

from tilefuse.export.recipes.catalogue import Report, StepRecord, names, train
from tilefuse.export.recipes.evaluation import Evaluation, ImageScore, evaluate
from tilefuse.export.recipes.progress import training_progress
from tilefuse.export.recipes.registry import Recipe
from tilefuse.export.recipes.training import TrainingReport, TrainingStep

__all__ = [
    "Evaluation",
    "ImageScore",
    "Recipe",
    "Report",
    "StepRecord",
    "TrainingReport",
    "TrainingStep",
    "evaluate",
    "names",
    "train",
    "training_progress",
]
