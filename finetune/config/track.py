"""Config section ``track``: experiment trackers that receive the metrics of a run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from finetune.config.base import Section, Text, tuple_of

Tracker = Literal["tensorboard", "mlflow", "wandb", "trackio"]


class TrackConfig(Section):
    """Experiment trackers that receive config, metrics and, where asked, pictures and weights."""

    to: Annotated[tuple[Tracker, ...], BeforeValidator(tuple_of), Field(min_length=1)]
    """Trackers: tensorboard writes event files into the run's folder; mlflow, wandb and trackio go
    where their own environment variables say."""
    project: Text = "finetune"
    """Project of Weights & Biases and Trackio, experiment of MLflow."""
    name: Text | None = None
    """Name of the run in the tracker; default: that of the run's folder."""
    pictures: bool = False
    """Whether the confusion matrix and a sample batch are sent at the end."""
    checkpoint: bool = False
    """Whether the best checkpoint is sent as an artifact at the end."""
