"""What a run is: pydantic models that own types, units, bounds and defaults. YAML files hold only differences.

`load_config(path, overrides)` reads one file, applies `key=value` overrides and validates. Every error is a
`ConfigError` whose text names the field, the value and the remedy. Ratios are fractions, never percent; 0 means off.
"""

from __future__ import annotations

from pyrl.config.base import (
    ConfigError,
    Fraction,
    Integer,
    Number,
    PositiveInt,
    Seconds,
    Section,
)
from pyrl.config.loading import (
    load_config,
    load_tree,
    parse_config,
)
from pyrl.config.method import (
    CISPO,
    GSPO,
    AlgorithmConfig,
    AnySurrogate,
    ClipCov,
    ClipHigher,
    ControlConfig,
    KLCov,
    LinearAnnealControl,
    LossConfig,
    PIControl,
    PPOClip,
    Ratio,
    Surrogate,
)
from pyrl.config.run import (
    RunConfig,
)
from pyrl.config.sections import (
    CheckpointConfig,
    ColumnsConfig,
    DataConfig,
    DynamicSamplingConfig,
    EvaluationDuringConfig,
    InstrumentsConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RewardConfig,
    RolloutConfig,
    ValidationConfig,
)

__all__ = [
    "CISPO",
    "GSPO",
    "AlgorithmConfig",
    "AnySurrogate",
    "CheckpointConfig",
    "ClipCov",
    "ClipHigher",
    "ColumnsConfig",
    "ConfigError",
    "ControlConfig",
    "DataConfig",
    "DynamicSamplingConfig",
    "EvaluationDuringConfig",
    "Fraction",
    "InstrumentsConfig",
    "Integer",
    "KLCov",
    "LinearAnnealControl",
    "LossConfig",
    "ModelConfig",
    "Number",
    "OptimizerConfig",
    "PIControl",
    "PPOClip",
    "ParallelConfig",
    "PositiveInt",
    "Ratio",
    "RewardConfig",
    "RolloutConfig",
    "RunConfig",
    "Seconds",
    "Section",
    "Surrogate",
    "ValidationConfig",
    "load_config",
    "load_tree",
    "parse_config",
]
