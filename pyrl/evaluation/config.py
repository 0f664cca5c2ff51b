"""What an evaluation is: a model, servers, and benchmarks as data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from pyrl.config import ColumnsConfig, ConfigError, Fraction, Integer, Number, PositiveInt, Seconds, Section, load_tree


class BenchmarkConfig(Section):
    source: str | None = None
    """A parquet or JSONL file, absolute or under `data_dir`; or `hub:OWNER/NAME/FILE`, a data set on the Hugging Face
    hub, of which `hub:OWNER/NAME@REVISION/FILE` takes one edition. None: the set is not at hand."""
    columns: ColumnsConfig | None = None
    """Of a file that is not in the schema of training data."""
    expected_rows: PositiveInt | None = None
    """Questions that the set must have; another number is an error. None: any."""
    samples: PositiveInt = 1
    """Drawn for each question."""
    temperature: Annotated[Number, Field(ge=0.0)] = 0.0
    """0: greedy."""
    top_p: Annotated[Number, Field(gt=0.0, le=1.0)] = 1.0
    max_tokens: PositiveInt = 8192
    """A response this long without a stop token is graded as it stands and counted as truncated."""
    template: Literal["chat", "r1_zero", "plain"] = "chat"
    """As `data.template` of a run."""
    strip: tuple[str, ...] = ()
    """Texts taken out of every prompt; a prompt without one of them is an error."""
    instruction: Literal["keep", "boxed", "answer"] = "keep"
    r"""What is added to a prompt: nothing; the request for `\\boxed{}`; or for an `Answer:` line."""
    grader: str = "math"
    """As `reward.task` of a run."""
    column: str | None = None
    """Column of the paper's Table 2 that this set is, or stands in for."""
    note: str = ""
    """Said beside the scores."""


class ServerConfig(Section):
    """vLLM servers, as `rollout` of a run."""

    urls: tuple[str, ...] = ()
    """Servers that already run with this model. Empty: pyrl starts its own."""
    count: PositiveInt = 1
    tp: PositiveInt = 1
    dtype: Literal["fp32", "bf16"] = "bf16"
    max_num_seqs: PositiveInt = 256
    """Sequences that one server decodes together. It is given twice as many requests at a time, and at least 2,048; for
    `urls` that were started with more than 1,024, say it here."""
    max_model_len: PositiveInt | None = None
    """Prompt and response together, tokens. None: longest prompt + most `max_tokens`."""
    threads: PositiveInt | None = None
    kv_cache_gib: Annotated[Number, Field(gt=0.0)] = 1.0
    gpu_memory_utilization: Fraction = 0.9
    request_timeout_seconds: Seconds = 1800.0
    """Longest silence of a server that has requests."""
    recovery_timeout_seconds: Annotated[Number, Field(ge=0.0)] = 600.0
    """How long a server that went away may take to come back."""
    max_retries: Annotated[Integer, Field(ge=0)] = 3
    timeout_seconds: Seconds = 7 * 86400.0
    """Deadline of all generation."""
    startup_timeout_seconds: Seconds = 600.0
    extra_server_args: tuple[str, ...] = ()


class EvaluationConfig(Section):
    model: Path
    """Hugging Face folder: config.json, safetensors and tokenizer."""
    data_dir: Path | None = None
    """Folder of the benchmark files. None: the environment variable PYRL_DATA_DIR."""
    seed: Annotated[Integer, Field(ge=0, lt=2**31)] = 0
    benchmarks: dict[str, BenchmarkConfig] = Field(min_length=1)
    only: tuple[str, ...] = ()
    """Benchmarks to evaluate. Empty: all."""
    max_questions: PositiveInt | None = None
    """The first so many of each benchmark. None: all."""
    grader_workers: PositiveInt = 1
    grader_timeout_seconds: Seconds | None = None
    """Wall limit of one grading; past it a sample is unjudged. None: 5, or what `grader` needs at least."""
    page_samples: Annotated[Integer, Field(ge=0)] = 32
    """Samples of each benchmark and verdict that report.html shows, from questions in turn; samples.jsonl holds all."""
    server: ServerConfig = ServerConfig()

    @property
    def chosen(self) -> dict[str, BenchmarkConfig]:
        """The benchmarks of `only`, or all. ConfigError for an unknown name."""
        if unknown := sorted(set(self.only) - self.benchmarks.keys()):
            raise ConfigError(f"only: {', '.join(unknown)} is no benchmark here; known: {', '.join(self.benchmarks)}")
        return {name: b for name, b in self.benchmarks.items() if not self.only or name in self.only}

    def identity(self) -> dict[str, Any]:
        """What its samples depend on, beside questions and weights: neither servers nor graders nor where files lie."""
        elsewhere = {"model", "server", "data_dir", "grader_workers", "grader_timeout_seconds", "page_samples"}
        tree = self.model_dump(mode="json", exclude=elsewhere)
        tree["server_dtype"] = self.server.dtype
        for benchmark in tree["benchmarks"].values():
            for field in ("grader", "note", "column", "columns", "expected_rows", "source"):
                del benchmark[field]
        return tree


def load_evaluation(path: Path, overrides: list[str]) -> EvaluationConfig:
    """Read YAML with `key=value` overrides. Raises ConfigError naming field and value."""
    try:
        return EvaluationConfig.model_validate(load_tree(path, overrides))
    except ValidationError as error:
        problems = "\n".join(
            f"  {'.'.join(map(str, e['loc']))}: {'unknown key' if e['type'] == 'extra_forbidden' else e['msg']}"
            for e in error.errors()
        )
        raise ConfigError(f"{path}:\n{problems}") from error
