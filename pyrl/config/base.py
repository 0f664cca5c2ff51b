"""What every section of a config is made of."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _refuse_boolean(value: Any) -> Any:
    """pydantic reads true as 1."""
    if isinstance(value, bool):
        raise ValueError("wanted a number")
    return value


Number = Annotated[float, BeforeValidator(_refuse_boolean)]
Integer = Annotated[int, BeforeValidator(_refuse_boolean)]
Fraction = Annotated[Number, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[Integer, Field(gt=0)]
Seconds = Annotated[Number, Field(gt=0.0)]


class ConfigError(ValueError):
    """Bad input in a config file or on the command line (exit code 2)."""


class Section(BaseModel):
    """Base of every config section: unknown keys, NaN and infinity are errors, values are immutable, attribute
    docstrings are kept."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, strict=False, allow_inf_nan=False
    )
