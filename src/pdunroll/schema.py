"""What files of ours hold, for those who read them: pydantic models, checked as a whole.

A reader gets the content as it is in the file; `check` raises `ValueError` with one line that names the first field at
fault. Fields that no model names are not looked at.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError, model_validator

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Number = Annotated[FiniteFloat, Field(ge=0)]
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]


class Model(BaseModel):
    """Of the types that are named, with nothing converted."""

    model_config = ConfigDict(strict=True)


# ---------------------------------------------------------------- run.json


class Strategy(Model):
    target: str = Field(alias="_target_")


class Backprop(Model):
    name: str
    primal_mask: str
    strategy: Strategy
    iterations: Positive | None = None  # b


class Network(Model):
    iterations: Positive  # L
    step_norm: str = "unset"  # in records of the first version


class Data(Model):
    name: str
    bits: Positive


class Settings(Model):
    seed: Count
    data: Data
    backprop: Backprop
    network: Network
    optimization: dict[str, Any]


class Results(Model):
    validation_mse: Number
    seconds: Number
    best_step: Count


class Failure(Model):
    reason: str


class Record(Model):
    """The run.json of a training."""

    status: Literal["training", "finished", "failed"]
    digest: str
    settings: Settings
    data: str
    code: str
    results: Results | Failure | None
    environment: dict[str, str]

    @model_validator(mode="after")
    def _results_are_those_of_the_status(self) -> Self:
        kind = {"training": type(None), "finished": Results, "failed": Failure}[self.status]
        if not isinstance(self.results, kind):
            raise ValueError(f"results do not go with status {self.status!r}")
        return self


class Provenance(Model):
    """What an operator file says of its training, as far as anyone relies on it."""

    bits: Positive | None = None
    sample_rate: Positive | None = None


class Sentence(Model):
    """An entry of audio/index.json: one restoration of a sentence to listen to."""

    name: str
    file: str
    restoration: str
    primal_mask: str | None
    step_norm: str | None = None


# ---------------------------------------------------------------- tables of results, a model a row


class Key(Model):
    """The columns that name an operator: one that was trained, the untrained DCT of a norm, or none at all."""

    backprop: str
    primal_mask: str | None
    step_norm: str | None
    l_training: Positive | None
    seed: Count | None
    b: Positive | None

    @model_validator(mode="after")
    def _names_one_operator(self) -> Self:
        named = [name for name in ("primal_mask", "step_norm", "l_training", "seed") if getattr(self, name) is not None]
        wanted = {"none": [], "dct": ["step_norm"]}.get(
            self.backprop, ["primal_mask", "step_norm", "l_training", "seed"]
        )
        if named != wanted:
            raise ValueError(f"a row of {self.backprop!r} must name {', '.join(wanted) or 'no setting'}")
        return self


class EvaluationRow(Key):
    l_inference: Positive
    mse: Number


class OptimaRow(Key):
    optimum_mse: Number
    validation_optimum_mse: Number
    certified: Share


class TrainingRow(Key):
    seconds: Number
    validation_mse: Number
    best_step: Count


class Origin(Model):
    """The provenance.json beside the tables."""

    command: str
    seeds: list[Count]
    commit: str
    data: str
    test_frames: Positive


ROWS: dict[str, type[Key]] = {"evaluation": EvaluationRow, "optima": OptimaRow, "training": TrainingRow}


def check(kind: Any, content: Any) -> None:
    """Raise `ValueError` with one line unless `content`, plain data, is of `kind`, a model or a type made of models."""
    try:
        TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(f"row {part + 1}" if isinstance(part, int) else part for part in first["loc"])
        raise ValueError(f"{place}: {first['msg']}" if place else first["msg"]) from None
