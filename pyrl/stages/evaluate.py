"""Evaluate: the benchmarks of `pyrl evaluate` on the policy of a step.

The run's own servers draw the samples between two steps, which is all that training waits for; they are graded beside
the steps that follow. `RUN/evaluations/step_000050` is an evaluation folder like any other, to be compared, regraded
and read.
"""

from __future__ import annotations

import logging
from pathlib import Path
from threading import Thread

from transformers import PreTrainedTokenizerBase

from pyrl.config import ConfigError, RunConfig
from pyrl.data.tokenizer import stop_token_ids
from pyrl.evaluation.benchmarks import Question, load_benchmarks
from pyrl.evaluation.config import EvaluationConfig, load_evaluation
from pyrl.evaluation.errors import EvaluationError
from pyrl.evaluation.generate import sample_request, sample_row
from pyrl.evaluation.grade import check_graders
from pyrl.evaluation.run import grade_and_score
from pyrl.evaluation.store import SCORES, open_folder, replace_samples
from pyrl.learner.checkpoint_store import set_aside, step_folder, step_of
from pyrl.learner.parallel import Parallel
from pyrl.rollout.open_files import allow_requests, open_requests
from pyrl.stages.engines import Engines
from pyrl.stages.exchange import gather_to_rank_zero
from pyrl.telemetry.timers import Timers
from pyrl.types import StepRecord

log = logging.getLogger("pyrl")

EVALUATIONS = "evaluations"


class PeriodicEvaluation:
    def __init__(
        self,
        settings: EvaluationConfig,
        questions: list[Question],
        folder: Path,
        *,
        engines: Engines,
        parallel: Parallel,
        tokenizer: PreTrainedTokenizerBase,
        timers: Timers,
    ) -> None:
        """`folder`: the run's; its `evaluations/` is written by rank 0."""
        self._settings = settings
        self._questions = questions
        self._root = folder / EVALUATIONS
        self._engines = engines
        self._parallel = parallel
        self._tokenizer = tokenizer
        self._timers = timers
        self._stops = stop_token_ids(settings.model, tokenizer)
        self._grading: list[Thread] = []
        self._scored: list[tuple[int, dict[str, float | None]]] = []

    def resume(self, step: int) -> None:
        """Set aside what is there of steps after `step` (-1: everything); grade what was drawn and not graded."""
        if self._parallel.rank != 0:
            return
        for folder in sorted(self._root.glob("step_*")):
            if step_of(folder) is None:
                continue
            if step_of(folder) > step:
                set_aside(folder)
            elif not (folder / SCORES).is_file():
                self._grade(folder, step_of(folder))

    def evaluate(self, step: int) -> None:
        """Draw every sample from the policy after `step` steps, under `rollout.timeout_seconds`. Collective.

        Samples that could not be stored are logged as an error: training need not end.
        """
        with self._timers.phase("evaluation"):
            asked = [(q, s) for q in self._questions for s in range(self._settings.benchmarks[q.benchmark].samples)]
            # in turn, for the benchmarks differ in length
            own = asked[self._parallel.dp_rank :: self._parallel.dp_size] if self._parallel.is_leader else []
            requests = [sample_request(self._settings, *each, self._stops) for each in own]
            results = self._engines.draw(requests, step=step, policy_version=step)
            rows = [
                sample_row(*each, request, result, self._tokenizer) | {"step": step}
                for each, request, result in zip(own, requests, results, strict=True)
                if result.error is None
            ]
            self._engines.wait_for_leaders(step)
            gathered = gather_to_rank_zero(rows, self._parallel)
        if gathered is None:
            return
        stored = [row for part in gathered for row in part]
        if len(stored) < len(asked):
            log.warning("evaluation of step %d: %d of %d samples have no answer and no part in its scores", step,
                        len(asked) - len(stored), len(asked))  # fmt: skip
        folder = step_folder(self._root, step)
        try:
            open_folder(folder, self._settings, self._questions, weights=f"policy of step {step}")
            replace_samples(folder, stored)
        except EvaluationError as error:
            log.error("evaluation of step %d is lost: %s", step, error)
            return
        self._grade(folder, step)

    def scored(self) -> StepRecord:
        """Fields `evaluation_*` of the oldest evaluation that was graded and not handed out yet; empty without one."""
        if not self._scored:
            return {}
        step, scores = self._scored.pop(0)
        return {"evaluation_step": step, "evaluation_avg_at_k": scores}

    def last_scored(self) -> StepRecord:
        """As `scored`, of the newest evaluation, which is waited for: no later record could hold it."""
        self.close()
        del self._scored[:-1]
        return self.scored()

    def close(self) -> None:
        """Wait for the grading that is under way."""
        for thread in self._grading:
            thread.join()

    def _grade(self, folder: Path, step: int) -> None:
        thread = Thread(target=self._grade_now, args=(folder, step), name="evaluation-grading")
        self._grading.append(thread)
        thread.start()

    def _grade_now(self, folder: Path, step: int) -> None:
        try:
            benchmarks = grade_and_score(self._settings, folder)["benchmarks"]
        except (ConfigError, EvaluationError, OSError) as error:  # the samples are kept, and training need not end
            log.error("evaluation of step %d is not graded (%s): `pyrl evaluate --regrade %s`", step, error, folder)
            return
        means = {name: b["avg_at_k"]["mean"] for name, b in benchmarks.items()}
        self._scored.append((step, means))
        said = ", ".join(f"{name} {'-' if mean is None else f'{mean:.3f}'}" for name, mean in means.items())
        log.info("evaluation of step %d, avg@k: %s", step, said)


def load_settings(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[EvaluationConfig, list[Question]] | None:
    """Benchmarks and questions of `evaluation.config`; None where no evaluation is asked for.

    Raises ConfigError: as `load_benchmarks`, or a response that the run's servers could not hold.
    """
    asked = config.evaluation
    if not asked.every:
        return None
    own = [f"model={config.model.path}", f"server.dtype={config.model.dtype}"]
    settings = load_evaluation(asked.config, [*own, *asked.overrides])
    check_graders(settings)
    questions = load_benchmarks(settings, tokenizer)
    samples = sum(settings.benchmarks[question.benchmark].samples for question in questions)
    rollout = config.rollout
    most = (len(rollout.urls) or rollout.servers_per_node) * open_requests(rollout.max_num_seqs)
    allow_requests(samples if config.deterministic else min(samples, most))
    held = config.data.max_prompt_tokens + config.rollout.max_response_tokens
    for question in questions:
        needed = len(question.token_ids) + settings.benchmarks[question.benchmark].max_tokens
        if needed > held:
            raise ConfigError(
                f"evaluation.config {asked.config}: question {question.id} of {question.benchmark} needs {needed} "
                f"tokens with its response, the run's servers hold data.max_prompt_tokens + "
                f"rollout.max_response_tokens = {held}: raise one of them, or give "
                f"evaluation.overrides=[benchmarks.{question.benchmark}.max_tokens=...]"
            )
    return settings, questions
