"""A run, from a config to a trained policy. One step reads:

    prompts -> rollout -> reward -> filter      Collector.collect        vLLM servers, grader processes
    -> advantage -> pack -> log-probs
    -> select -> loss -> update                 PolicyImprover.improve   Megatron-Core, pyrl.ops
    -> weight sync                              Engines.sync             vLLM's RL API
    -> record                                   RunRecorder.write        metrics.jsonl

Every rank runs this file in lockstep. Leaders (tensor and pipeline rank 0 of each replica) generate and grade their
share; each node's first rank feeds its servers' weights; rank 0 writes the run folder.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer

from pyrl.config import ConfigError, RunConfig
from pyrl.data.cursor import PromptCursor
from pyrl.data.prompts import load_prompts
from pyrl.learner.checkpoint import load_checkpoint, save_checkpoint
from pyrl.learner.checkpoint_store import latest_checkpoint, read_trainer_state
from pyrl.learner.learner import Learner
from pyrl.learner.parallel import Parallel, init_parallel
from pyrl.reward.pool import RewardPool
from pyrl.rollout.server import ServerPool
from pyrl.stages.collect import Collector
from pyrl.stages.engines import Engines
from pyrl.stages.exchange import broadcast_from_rank_zero
from pyrl.stages.improve import PolicyImprover
from pyrl.stages.validate import Validator
from pyrl.telemetry.progress import StepProgress
from pyrl.telemetry.recorder import RunRecorder, sample_row
from pyrl.telemetry.timers import Timers
from pyrl.types import Prompt, RolloutGroup, StepRecord

log = logging.getLogger("pyrl")

PROBES = 8
"""Prompts on which engines and learner are compared after the first sync."""
SAMPLES_PER_STEP = 4
"""Groups whose first response is written to samples.jsonl each step."""


def train(config: RunConfig, run_folder: Path, *, servers: ServerPool | None = None, title: str = "training") -> None:
    """Train as `config` says and write everything under `run_folder`. Every rank calls it.

    `servers`: engines that already run (the caller stops them); None: start and stop our own, or use `rollout.urls`.
    Raises ConfigError for bad input, before anything is written; on any other error the records and checkpoints written
    so far stay valid and the same call resumes from them (`checkpoint.resume`).
    """
    with contextlib.ExitStack() as stack:
        run = Run.open(config, run_folder, stack, servers)
        progress = StepProgress(title, config.steps, start=run.step, enabled=run.parallel.rank == 0)
        with progress:
            run.begin()
            while run.step < config.steps:
                record = run.advance()
                progress.update(run.step, record)
            run.finish()


@dataclass(slots=True)
class Run:
    """The parts of one run and how far it has come."""

    config: RunConfig
    folder: Path
    parallel: Parallel
    learner: Learner
    engines: Engines
    collector: Collector
    improver: PolicyImprover
    validator: Validator
    prompts: list[Prompt]
    cursor: PromptCursor
    recorder: RunRecorder | None
    timers: Timers
    tokenizer: object
    step: int = 0
    """Rollout steps done; also the version of the current weights."""
    gradient_step: int = 0

    @classmethod
    def open(cls, config: RunConfig, folder: Path, stack: contextlib.ExitStack, servers: ServerPool | None) -> Run:
        """Check the input, then build learner, engines and graders; what must be closed goes on `stack`."""
        parallel = init_parallel(config.parallel)
        tokenizer = load_tokenizer(config.model.path)
        prompts = load_prompts(config.data, tokenizer)
        held_out = load_prompts(config.data, tokenizer, validation=True) if config.data.validation_path else []
        on_cuda = parallel.device.type == "cuda"
        timers = Timers(torch.cuda.synchronize if on_cuda else None)
        pool = None
        if parallel.is_leader:
            reward = config.reward
            pool = stack.enter_context(RewardPool(reward.task, reward.workers, reward.timeout_seconds))
        engines = stack.enter_context(Engines.start(config, parallel, folder, tokenizer.eos_token_id, servers))
        learner = Learner(config, parallel)
        collector = Collector(
            config, engines=engines, pool=pool, tokenizer=tokenizer, parallel=parallel, timers=timers
        )
        run = cls(
            config=config,
            folder=folder,
            parallel=parallel,
            learner=learner,
            engines=engines,
            collector=collector,
            improver=PolicyImprover(config, learner, parallel, timers),
            validator=Validator(config.validation, held_out, collector, timers),
            prompts=prompts,
            cursor=PromptCursor(len(prompts), seed=config.seed, shuffle=config.data.shuffle),
            recorder=stack.enter_context(RunRecorder(folder)) if parallel.rank == 0 else None,
            timers=timers,
            tokenizer=tokenizer,
        )
        run._resume()
        return run

    def begin(self) -> None:
        """Give the engines the learner's weights and prove that they hold them."""
        if self.recorder is not None:
            self.recorder.write_config(self.config.to_yaml())
        self.engines.sync(self.learner, version=self.step)
        self.engines.verify(self.learner, self.prompts[:PROBES], version=self.step)
        if self.step == 0 and self.config.validation.every:
            record = {"step": 0, "policy_version": 0, "gradient_step": 0} | self.validator.validate(0)
            self._write(record | self.timers.collect())
        self.timers.collect()  # what it took to start belongs to no step

    def advance(self) -> StepRecord:
        """One rollout step; returns its record."""
        step, version = self.step + 1, self.step
        collected = self.collector.collect(self.prompts, self.cursor, step=step, policy_version=version)
        metrics = self.improver.improve(collected.groups, step=step)
        self.step = step
        self.gradient_step += self.config.algorithm.updates_per_rollout
        with self.timers.phase("sync"):
            self.engines.sync(self.learner, version=step)
        record: StepRecord = {
            "step": step,
            "gradient_step": self.gradient_step,
            "policy_version": version,
            "prompts_consumed": self.cursor.consumed,
            "memory_learner_bytes": self.learner.memory_bytes(),
        }
        record |= collected.metrics() | metrics
        if self._due(self.config.validation.every):
            record |= self.validator.validate(step)
        record |= self.timers.collect()
        record["tokens_per_second"] = record["response_tokens"] / record["seconds_step"]
        self._write(record, collected.groups)
        self._warn_of_unjudged(record)
        if self._due(self.config.checkpoint.every):
            with self.timers.phase("checkpoint"):  # in the next record: a checkpoint may not run ahead of its records
                self.save()
        return record

    def finish(self) -> None:
        """Write the final policy."""
        if self.config.checkpoint.export_hf:
            self.learner.export_hf(self.folder / "final")
        if self.recorder is not None:
            self.recorder.sync()

    def save(self) -> None:
        """Write a checkpoint of everything that the next step depends on."""
        if self.recorder is not None:
            self.recorder.sync()
        state = {
            "step": self.step,
            "gradient_step": self.gradient_step,
            "cursor": self.cursor.state_dict(),
            "config": self.config.model_dump(mode="json"),
        }
        save_checkpoint(
            self.folder / "checkpoints",
            self.step,
            model=self.learner.model,
            optimizer=self.learner.optimizer,
            trainer_state=state,
            keep_last=self.config.checkpoint.keep_last,
        )

    def _resume(self) -> None:
        folder = self._checkpoint_to_resume()
        if folder is None:
            if self.recorder is not None and self.recorder.last_step is not None:
                self._start_over(self.recorder)
            return
        changed = changed_fields(read_trainer_state(folder)["config"], self.config.model_dump(mode="json"))
        if changed:
            raise ConfigError(
                f"{folder} was written by a run with other settings of {', '.join(changed)}: a resumed run would be "
                "neither the one nor the other. Restore them, or start anew in another run folder"
            )
        state = load_checkpoint(folder, model=self.learner.model, optimizer=self.learner.optimizer)
        self.step, self.gradient_step = state["step"], state["gradient_step"]
        self.cursor.load_state_dict(state["cursor"])
        if self.recorder is not None:
            self.recorder.truncate_after(self.step)
        log.info("resumed from %s after step %d", folder, self.step)

    def _start_over(self, recorder: RunRecorder) -> None:
        """A run that ended before its first checkpoint begins anew; records that `resume: never` gives up stay."""
        if self.config.checkpoint.resume == "never":
            raise ConfigError(
                f"run folder {self.folder} holds the records of another run and checkpoint.resume is never: "
                "give another --run-folder, or remove it"
            )
        recorder.truncate_after(-1)

    def _checkpoint_to_resume(self) -> Path | None:
        resume = self.config.checkpoint.resume
        if resume == "never":
            return None
        if resume != "auto":
            return Path(resume)
        newest = latest_checkpoint(self.folder / "checkpoints") if self.parallel.rank == 0 else None
        return broadcast_from_rank_zero(newest, self.parallel)

    def _due(self, every: int) -> bool:
        return every > 0 and (self.step % every == 0 or self.step == self.config.steps)

    def _write(self, record: StepRecord, groups: list[RolloutGroup] | None = None) -> None:
        if self.recorder is None:
            return
        self.recorder.write(record)
        shown = (groups or [])[:SAMPLES_PER_STEP]
        self.recorder.write_samples(sample_row(record["step"], group, 0, self.tokenizer.decode) for group in shown)

    def _warn_of_unjudged(self, record: StepRecord) -> None:
        total = record["verdicts_right"] + record["verdicts_wrong"] + record["verdicts_unjudged"]
        share = record["verdicts_unjudged"] / total if total else 0.0
        if share > self.config.reward.unjudged_alarm and self.parallel.rank == 0:
            log.warning("step %d: %.1f%% of the completions could not be judged", record["step"], 100 * share)


RESUMABLE_CHANGES = (
    "steps",
    "checkpoint",
    "validation",
    "data.validation_path",
    "reward.workers",
    "reward.timeout_seconds",
    "rollout.urls",
    "rollout.request_timeout_seconds",
    "rollout.max_retries",
    "rollout.startup_timeout_seconds",
    "rollout.kv_cache_gib",
    "rollout.gpu_memory_utilization",
    "parallel.timeout_seconds",
)
"""Settings that a resumed run may have other than its checkpoint: where it runs and how long it waits, not what it
computes."""


def changed_fields(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Dotted names of the settings that differ and may not."""
    changed = []
    for key in sorted(old.keys() | new.keys()):
        if f"{prefix}{key}" in RESUMABLE_CHANGES:
            continue
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            changed += changed_fields(before, after, f"{prefix}{key}.")
        elif before != after:
            changed.append(f"{prefix}{key}")
    return changed


def load_tokenizer(folder: Path):
    """The model's tokenizer; ConfigError where the folder or its stop token is missing."""
    if not folder.is_dir():
        raise ConfigError(
            f"model.path {folder} is not a folder: give a Hugging Face folder (`pyrl convert` makes one from GGUF)"
        )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"model.path {folder}: the tokenizer has no eos_token, so a response could never end")
    return tokenizer
