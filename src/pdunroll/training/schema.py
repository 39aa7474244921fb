"""The content of a training's run.json and of an operator file, as pydantic models for `pdunroll.files.check`.

The models only check the content, and ignore fields that they do not name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Number = Annotated[FiniteFloat, Field(ge=0)]
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]


class Model(BaseModel):
    """A model whose fields are checked without type conversion."""

    model_config = ConfigDict(strict=True)


class Strategy(Model):
    """The class of a strategy or of a loss."""

    target: str = Field(alias="_target_")


class Backprop(Model):
    """The mode of backpropagation."""

    name: str
    primal_mask: str
    strategy: Strategy
    iterations: Positive | None = None  # b


class Objective(Model):
    """The loss, if it is not the error after L iterations."""

    label: str
    loss: Strategy


class Network(Model):
    """The size and the step sizes of the network that was trained."""

    iterations: Positive  # L
    step_norm: str = "unset"  # in records of the first version
    rows: Positive | None = None  # m
    step_ratio: Number = 10.0
    learned_steps: bool = False
    extrapolation: Share = 1.0


class Data(Model):
    """The training frames: the corpus, their length and the bits of the quantizer."""

    name: str
    bits: Positive
    frame_length: Positive


class Settings(Model):
    """The scientific settings of a training."""

    seed: Count
    data: Data
    backprop: Backprop
    objective: Objective = Objective.model_construct(label="")
    network: Network
    optimization: dict[str, Any]


class Results(Model):
    """The results of a finished training."""

    validation_mse: Number
    seconds: Number
    best_step: Count
    step_ratio: Annotated[FiniteFloat, Field(gt=0)] | None = None  # of the best operator, if they were learned
    step_scale: Annotated[FiniteFloat, Field(gt=0, lt=1)] | None = None


class Failure(Model):
    """Why a training failed."""

    reason: str


class Record(Model):
    """The run.json of a training."""

    status: Literal["training", "finished", "failed"]
    settings: Settings
    data: str
    code: str
    strategy: str | None = None
    results: Results | Failure | None
    environment: dict[str, str]

    @model_validator(mode="after")
    def _results_are_those_of_the_status(self) -> Self:
        kind = {"training": type(None), "finished": Results, "failed": Failure}[self.status]
        if not isinstance(self.results, kind):
            raise ValueError(f"results do not go with status {self.status!r}")
        found = self.results
        if (
            isinstance(found, Results)
            and self.settings.network.learned_steps
            and None in (found.step_ratio, found.step_scale)
        ):
            raise ValueError("the learned step sizes are missing")
        return self


class Provenance(Model):
    """The fields of an operator file's provenance that the package uses."""

    bits: Positive | None = None
    sample_rate: Positive | None = None
