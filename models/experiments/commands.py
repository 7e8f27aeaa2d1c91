"""`python -m models evaluate ...`: the commands of `models.evaluation`, and those of experiments."""

from models.experiments.class_names import evaluate_names
from models.experiments.heard import evaluate_heard
from models.experiments.zero_shot_command import evaluate_app

__all__ = ["evaluate_app"]

evaluate_app.command("names")(evaluate_names)
evaluate_app.command("heard")(evaluate_heard)
