"""A run, from a config to a trained policy. One step reads:

    prompts -> rollout -> reward -> filter      Collector.collect        vLLM servers, grader processes
    -> advantage -> pack -> log-probs
    -> select -> loss -> update                 PolicyImprover.improve   Megatron-Core, pyrl.ops
    -> weight sync                              Engines.sync             vLLM's RL API
    -> record                                   RunRecorder.write        metrics.jsonl

Every rank runs this file in lockstep. Leaders (tensor and pipeline rank 0 of each replica) generate and grade their
share; each node's first rank starts servers, with their logs, and feeds them weights; rank 0 writes the rest of the run
folder, but for the parts of a checkpoint, of which every rank writes its own.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedTokenizerBase

from pyrl.algorithms.controllers import Control, build_control
from pyrl.analysis.spent_entropy import spent_entropy_notice
from pyrl.config import ConfigError, RunConfig
from pyrl.data.cursor import PromptCursor
from pyrl.data.prompts import fingerprint, load_prompts
from pyrl.data.tokenizer import check_vocabulary, load_tokenizer
from pyrl.evaluation.benchmarks import Question
from pyrl.evaluation.config import EvaluationConfig
from pyrl.learner.checkpoint import load_checkpoint, save_checkpoint
from pyrl.learner.checkpoint_store import set_aside_from
from pyrl.learner.learner import Learner
from pyrl.learner.model import plan_policy
from pyrl.learner.parallel import Parallel, init_parallel
from pyrl.reward.pool import RewardPool
from pyrl.reward.truths import check_truths
from pyrl.rollout.server import ServerPool
from pyrl.run_folder import CHECKPOINTS, FINAL, ResumePoint, check_free, check_shared, find_resume_point, locked
from pyrl.stages.assignment import check_head_dim, check_length, check_servers, check_shared_memory
from pyrl.stages.collect import Collector
from pyrl.stages.determinism import check_deterministic, check_part_counts, part_counts
from pyrl.stages.engines import Engines
from pyrl.stages.evaluate import PeriodicEvaluation, load_settings
from pyrl.stages.exchange import broadcast_from_rank_zero, gather_from_every_rank
from pyrl.stages.improve import PolicyImprover
from pyrl.stages.selected_sample import selected_row
from pyrl.stages.validate import Validator
from pyrl.telemetry.health import Health
from pyrl.telemetry.progress import StepProgress
from pyrl.telemetry.recorder import SUPERSEDED, RunRecorder, sample_row
from pyrl.telemetry.running_fits import RunningFits
from pyrl.telemetry.timers import Timers
from pyrl.types import Prompt, RolloutGroup, StepRecord

log = logging.getLogger("pyrl")
T = TypeVar("T")

PROBES = 8
"""Prompts on which engines and learner are compared after the first sync."""
SAMPLES_PER_STEP = 4
"""Groups whose first response is written to samples.jsonl each step."""


def train(
    config: RunConfig,
    run_folder: Path,
    *,
    servers: ServerPool | None = None,
    title: str = "training",
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Train as `config` says and write everything under `run_folder`. Every rank calls it. Whether it came to the end.

    `servers`: engines that already run (the caller stops them); None: start and stop our own, or use `rollout.urls`.
    `stop`: asked between steps, on rank 0; once it says so, a checkpoint is written and the run ends early.
    Raises ConfigError for bad input, before anything is written; on any other error the records and checkpoints written
    so far stay valid and the same call resumes from them (`checkpoint.resume`).
    """
    with contextlib.ExitStack() as stack:
        run = Run.open(config, run_folder, stack, servers)
        progress = StepProgress(title, config.steps, start=run.step, enabled=run.parallel.rank == 0)
        with progress:
            run.begin()
            while run.step < config.steps:
                if broadcast_from_rank_zero(run.parallel.rank == 0 and stop(), run.parallel):
                    run.pause()
                    return False
                record = run.advance()
                progress.update(run.step, record)
            run.finish()
    return True


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
    evaluation: PeriodicEvaluation | None
    prompts: list[Prompt]
    cursor: PromptCursor
    recorder: RunRecorder | None
    timers: Timers
    tokenizer: PreTrainedTokenizerBase
    part_counts: dict[str, Any]
    """Of `determinism.part_counts`."""
    control: Control
    health: Health
    step: int = 0
    """Rollout steps done; also the version of the current weights."""
    gradient_step: int = 0
    saved_step: int | None = None
    """Of the newest checkpoint."""
    fits: RunningFits = field(default_factory=RunningFits)

    @classmethod
    def open(cls, config: RunConfig, folder: Path, stack: contextlib.ExitStack, servers: ServerPool | None) -> Run:
        """Refuse bad input on every rank, then build learner, engines and graders; what must be closed goes on `stack`.

        Until the run folder is locked nothing is written and nothing lasting is started. Servers come next, and load
        their model while the learner loads its own.
        """
        parallel = init_parallel(config.parallel)
        counts = part_counts(config, parallel)
        inputs = refuse_together(lambda: Inputs.read(config, parallel), parallel)
        refuse_together(lambda: check_free(folder) if parallel.rank == 0 else None, parallel)
        refuse_together(lambda: inputs.resume_point(config, folder, parallel, counts), parallel)
        pool = refuse_together(lambda: _start_graders(config, parallel, stack), parallel)
        refuse_together(lambda: inputs.check_truths(config, pool) if parallel.rank == 0 else None, parallel)
        holder = refuse_together(lambda: stack.enter_context(locked(folder)) if parallel.rank == 0 else None, parallel)
        holder = broadcast_from_rank_zero(holder, parallel)
        refuse_together(lambda: check_shared(folder, holder), parallel)
        # Once more: until now another run could change the folder.
        point = refuse_together(lambda: inputs.resume_point(config, folder, parallel, counts), parallel)
        point = broadcast_from_rank_zero(point, parallel)
        tokenizer = inputs.tokenizer
        engines = stack.enter_context(Engines.start(config, parallel, folder, tokenizer.eos_token_id, servers))
        learner = Learner(config, parallel)
        timers = Timers(torch.cuda.synchronize if parallel.device.type == "cuda" else None)
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
            validator=Validator(config.validation, inputs.held_out, collector, timers, last_step=config.steps),
            evaluation=_open_evaluation(
                inputs, folder, stack, engines=engines, parallel=parallel, tokenizer=tokenizer, timers=timers
            ),
            prompts=inputs.prompts,
            cursor=inputs.cursor(config),
            recorder=stack.enter_context(RunRecorder(folder)) if parallel.rank == 0 else None,
            timers=timers,
            tokenizer=tokenizer,
            part_counts=counts,
            control=build_control(config.loss, config.entropy_control),
            health=Health(config, vocabulary=learner.policy.shape.vocab_size),
        )
        run._start_at(point)
        return run

    def begin(self) -> None:
        """Give the engines the learner's weights and prove that they hold them."""
        if self.recorder is not None:
            self.recorder.write_config(self.config.to_yaml())
        self.engines.sync(self.learner, version=self.step)
        self.engines.verify(self.learner, self.prompts[:PROBES], version=self.step)
        if self.step == 0 and self.config.validation.every:
            record = {"step": 0, "policy_version": 0, "gradient_step": 0} | self._validate()
            self._write(record | self.timers.collect())
        if self.step == 0 and self.evaluation is not None:
            self.evaluation.evaluate(0)
        self.timers.collect()  # what it took to start belongs to no step

    def advance(self) -> StepRecord:
        """One rollout step; returns its record."""
        step, version = self.step + 1, self.step
        collected = self.collector.collect(self.prompts, self.cursor, step=step, policy_version=version)
        self.improver.loss = self.control.loss
        metrics = self.improver.improve(collected, step=step)
        metrics |= self.control.observe(metrics["entropy"])
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
            "memory_reference_bytes": self.learner.reference.bytes if self.learner.reference else None,
        }
        record |= collected.metrics() | metrics
        record |= self.fits.add(record)
        record |= self.health.add(record)
        if self._due(self.config.validation.every):
            record |= self._validate()
        if self.evaluation is not None:
            if self._due(self.config.evaluation.every):
                self.evaluation.evaluate(step)
            last = step == self.config.steps
            record |= self.evaluation.last_scored() if last else self.evaluation.scored()
        record |= self.timers.collect()
        record["tokens_per_second"] = record["response_tokens"] / record["seconds_step"]
        samples = [
            *(self._sample_row(step, group) for group in self.collector.first_samples(collected, SAMPLES_PER_STEP)),
            *(selected_row(step, token, collected, self.tokenizer.decode) for token in self.improver.selected_sample),
        ]
        self._write(record, samples)
        self._warn(record)
        if self._due(self.config.checkpoint.every):
            with self.timers.phase("checkpoint"):  # in the next record: a checkpoint may not run ahead of its records
                self.save()
        return record

    def finish(self) -> None:
        """Write the final policy."""
        if self.config.checkpoint.export_hf:
            self.learner.export_hf(self.folder / FINAL)
        if self.recorder is not None:
            self.recorder.sync()

    def pause(self) -> None:
        """Leave the run so that the same call goes on from this very step."""
        if self.step > 0 and self.saved_step != self.step:
            self.save()

    def save(self) -> None:
        """Write a checkpoint of everything that the next step depends on."""
        if self.recorder is not None:
            self.recorder.sync()
        state = {
            "step": self.step,
            "gradient_step": self.gradient_step,
            "cursor": self.cursor.state_dict(),
            "fits": self.fits.state_dict(),
            "health": self.health.state_dict(),
            "entropy_control": self.control.state_dict(),
            "config": self.config.model_dump(mode="json"),
            "part_counts": self.part_counts,
        }
        save_checkpoint(
            self.folder / CHECKPOINTS,
            self.step,
            model=self.learner.model,
            optimizer=self.learner.optimizer,
            trainer_state=state,
            keep_last=self.config.checkpoint.keep_last,
        )
        self.saved_step = self.step

    def _start_at(self, point: ResumePoint | None) -> None:
        """Load the checkpoint, if there is one, and set aside what the folder holds of later steps."""
        if point is not None:
            state = load_checkpoint(point.checkpoint, model=self.learner.model, optimizer=self.learner.optimizer)
            self.step, self.gradient_step = state["step"], state["gradient_step"]
            self.cursor.load_state_dict(state["cursor"])
            self.fits.load_state_dict(state["fits"])
            self.health.load_state_dict(state["health"])
            self.control.load_state_dict(state["entropy_control"])
            log.info("resumed from %s after step %d", point.checkpoint, self.step)
        if self.evaluation is not None:
            self.evaluation.resume(self.step if point is not None else -1)
        if self.recorder is None:
            return
        set_aside_from(self.folder / CHECKPOINTS, self.step + 1)
        moved = self.recorder.truncate_after(self.step if point is not None else -1)
        if moved:
            log.warning("%d records after step %d are now in %s", moved, self.step, self.folder / SUPERSEDED)

    def _due(self, every: int) -> bool:
        return every > 0 and (self.step % every == 0 or self.step == self.config.steps)

    def _write(self, record: StepRecord, samples: Iterable[dict[str, Any]] = ()) -> None:
        if self.recorder is None:
            return
        self.recorder.write(record)
        self.recorder.write_samples(samples)

    def _validate(self) -> StepRecord:
        """Fields `validation_*` of the present policy; its questions go into their own file."""
        validation = self.validator.validate(self.step)
        if self.recorder is not None:
            self.recorder.write_validation(validation.questions)
        return validation.metrics

    def _sample_row(self, step: int, group: RolloutGroup) -> dict[str, Any]:
        return sample_row(step, group, 0, self.tokenizer.decode)

    def _warn(self, record: StepRecord) -> None:
        for message in (self._unjudged(record), self._spent(record), *self.health.messages):
            if message and self.parallel.rank == 0:
                log.warning(message)

    def _spent(self, record: StepRecord) -> str | None:
        if not self.fits.is_nearly_spent(record):
            return None
        law = self.fits.law
        message = spent_entropy_notice(law.steps, law.entropy, law.reward)
        self.fits.noticed = message is not None
        return message

    def _unjudged(self, record: StepRecord) -> str | None:
        total = record["verdicts_right"] + record["verdicts_wrong"] + record["verdicts_unjudged"]
        share = record["verdicts_unjudged"] / total if total else 0.0
        if share <= self.config.reward.unjudged_alarm:
            return None
        return f"step {record['step']}: {100 * share:.1f}% of the completions could not be judged"


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a run reads, checked, before it starts or writes anything."""

    tokenizer: PreTrainedTokenizerBase
    prompts: list[Prompt]
    held_out: list[Prompt]
    fingerprint: str
    """Of `prompts`."""
    evaluation: tuple[EvaluationConfig, list[Question]] | None

    @classmethod
    def read(cls, config: RunConfig, parallel: Parallel) -> Inputs:
        """Raises ConfigError for a model, data or servers that this run could not use."""
        tokenizer = load_tokenizer(config.model.path)
        policy = plan_policy(config.model, parallel)
        check_deterministic(config, parallel)
        check_servers(config, parallel)
        check_shared_memory(config, parallel, policy.shape, policy.dtype)
        check_head_dim(config, parallel, policy.shape)
        check_length(config, policy.max_positions)
        held_out = load_prompts(config.data, tokenizer, validation=True) if config.data.validation_path else []
        prompts = load_prompts(config.data, tokenizer)
        check_vocabulary(
            [*prompts, *held_out], tokenizer, rows=policy.shape.vocab_size, folder=config.model.path
        )
        return cls(tokenizer, prompts, held_out, fingerprint(prompts), load_settings(config, tokenizer))

    def check_truths(self, config: RunConfig, pool: RewardPool) -> None:
        """Raises ConfigError as `reward.truths.check_truths`; the held-out ones, which are fewer, come first."""
        files = [(config.data.validation_path, self.held_out), (config.data.path, self.prompts)]
        check_truths(pool, [(path, prompts) for path, prompts in files if path is not None])

    def cursor(self, config: RunConfig) -> PromptCursor:
        """Before the first prompt."""
        return PromptCursor(
            len(self.prompts), seed=config.seed, shuffle=config.data.shuffle, fingerprint=self.fingerprint
        )

    def resume_point(
        self, config: RunConfig, folder: Path, parallel: Parallel, counts: dict[str, Any]
    ) -> ResumePoint | None:
        """As `find_resume_point`, on rank 0 alone; raises ConfigError for other prompts than the checkpoint's too, and
        for other part `counts` where they matter."""
        point = find_resume_point(config, folder) if parallel.rank == 0 else None
        if point is not None:
            self.cursor(config).load_state_dict(point.state["cursor"])
            check_part_counts(config, point.checkpoint, point.state, counts)
        return point


def _open_evaluation(
    inputs: Inputs, folder: Path, stack: contextlib.ExitStack, **parts: Any
) -> PeriodicEvaluation | None:
    if inputs.evaluation is None:
        return None
    evaluation = PeriodicEvaluation(*inputs.evaluation, folder, **parts)
    stack.callback(evaluation.close)
    return evaluation


def refuse_together(work: Callable[[], T], parallel: Parallel) -> T:
    """Each rank's own result of `work`. A ConfigError of one rank is raised on all: none goes on alone. Collective."""
    result, refusal = None, None
    try:
        result = work()
    except ConfigError as error:
        refusal = str(error)
    refusals = [text for text in gather_from_every_rank(refusal, parallel) if text is not None]
    if refusals:
        raise ConfigError(refusals[0])
    return result


def _start_graders(config: RunConfig, parallel: Parallel, stack: contextlib.ExitStack) -> RewardPool | None:
    """The leader's; this also tries whether the task's grader can be loaded."""
    if not parallel.is_leader:
        return None
    reward = config.reward
    return stack.enter_context(RewardPool(reward.task, reward.workers, reward.timeout_seconds))
