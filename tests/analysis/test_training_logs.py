"""Reading logs: the formats of pyrl, verl, TRL and OpenRLHF, plain tables, and what is wrong with a log."""

import json
from pathlib import Path

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from pyrl.analysis.training_logs import Curve, expand, read_curves
from pyrl.config import ConfigError
from pyrl.telemetry.recorder import RunRecorder

ENTROPY, REWARD = [0.9, 0.7, 0.5], [0.1, 0.2, 0.3]


def lines(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pyrl_run(folder: Path, loss: str = "kl_cov") -> Path:
    with RunRecorder(folder) as recorder:
        recorder.write_config(f"seed: 3\nloss:\n  name: {loss}\n")
        recorder.write({"step": 0, "validation_reward_mean": 0.05})
        for step, (entropy, reward) in enumerate(zip(ENTROPY, REWARD, strict=True), start=1):
            recorder.write({"step": step, "policy_version": step - 1, "entropy": entropy, "reward_mean": reward})
    return folder


def verl_file(path: Path) -> Path:
    rows = [{"step": 0, "data": {"val-core/acc/mean@1": 0.2}}]
    rows += [{"step": s, "data": {"actor/entropy": h, "critic/score/mean": r, "critic/rewards/mean": r - 1,
                                  "training/global_step": s}}
             for s, h, r in zip((1, 2, 3), ENTROPY, REWARD, strict=True)]  # fmt: skip
    return lines(path / "verl.jsonl", rows)


def verl_console(path: Path) -> Path:
    text = ["INFO worker: loading\n"]
    for s, h, r in zip((1, 2, 3), ENTROPY, REWARD, strict=True):
        text.append(f"\x1b[36m(TaskRunner pid=7)\x1b[0m step:{s} - global_seqlen/min:17 - actor/entropy:{h} - "
                    f"critic/score/mean:np.float64({r:.1e}) - perf/throughput:1.5e+03\n")  # fmt: skip
    (path / "console.log").write_text("".join(text))
    return path / "console.log"


def trl_state(path: Path) -> Path:
    history = [{"step": s, "epoch": s / 10, "entropy": h, "reward": r, "rewards/acc/mean": r}
               for s, h, r in zip((1, 2, 3), ENTROPY, REWARD, strict=True)]  # fmt: skip
    history.insert(2, {"step": 2, "eval_reward": 0.4})
    history.append({"step": 3, "train_runtime": 12.0})
    (path / "checkpoint-3").mkdir()
    (path / "checkpoint-3" / "trainer_state.json").write_text(json.dumps({"log_history": history, "epoch": 1}))
    return path / "checkpoint-3"


def openrlhf_table(path: Path) -> Path:
    rows = ["_step,train/global_step,train/entropy_loss,train/reward,eval/acc"]
    rows += [f"{7 * s},{s},{h},{r}," for s, h, r in zip((1, 2, 3), ENTROPY, REWARD, strict=True)]
    (path / "open.csv").write_text("\n".join([*rows[:2], "8,,,,0.5", *rows[2:]]) + "\n")
    return path / "open.csv"


def read_curve(path: Path, **names: str) -> Curve:
    (curve,) = read_curves(path, **names)
    return curve


def tracker_export(path: Path) -> Path:
    rows = ['"Step","run 7 - actor/entropy","run 7 - actor/entropy__MIN","run 7 - critic/rewards/mean"']
    rows += [f'"{s}","{h}","0","{r}"' for s, h, r in zip((1, 2, 3), ENTROPY, REWARD, strict=True)]
    (path / "export.csv").write_text("\n".join(rows).replace('"Step"', '"_step"') + "\n")
    return path / "export.csv"


def semicolons(path: Path) -> Path:
    rows = ["\ufeffstep;entropy;reward", *(f"{s};{h};{r}" for s, h, r in zip((1, 2, 3), ENTROPY, REWARD, strict=True))]
    (path / "t.csv").write_text("\n".join(rows), encoding="utf-8")
    return path / "t.csv"


def events(path: Path) -> Path:
    """As OpenRLHF's TensorBoard logger, in two files, the second of which repeats a step."""
    for steps in ((1, 2), (2, 3)):
        with SummaryWriter(path / "tb") as writer:
            for s in steps:
                wrong = 9.0 if s == 2 and steps[0] == 1 else 0.0
                writer.add_scalar("train/entropy_loss", ENTROPY[s - 1] + wrong, s)
                writer.add_scalar("train/reward", REWARD[s - 1] + wrong, s)
                writer.add_scalar("eval/score", 0.5, s + 10)
    return path / "tb"


@pytest.mark.parametrize(
    ("write", "trainer", "columns"),
    [
        (lambda p: pyrl_run(p / "run"), "pyrl", ("step", "entropy", "reward_mean")),
        (lambda p: pyrl_run(p / "run") / "metrics.jsonl", "pyrl", ("step", "entropy", "reward_mean")),
        (verl_file, "verl", ("training/global_step", "actor/entropy", "critic/score/mean")),
        (verl_console, "verl", ("step", "actor/entropy", "critic/score/mean")),
        (tracker_export, "verl", ("_step", "actor/entropy", "critic/rewards/mean")),
        (trl_state, "TRL", ("step", "entropy", "reward")),
        (openrlhf_table, "OpenRLHF", ("train/global_step", "train/entropy_loss", "train/reward")),
        (events, "OpenRLHF", ("step", "train/entropy_loss", "train/reward")),
        (semicolons, "table", ("step", "entropy", "reward")),
    ],
)
def test_logs_of_each_trainer_are_read(tmp_path: Path, write, trainer: str, columns: tuple) -> None:
    curve = read_curve(write(tmp_path))
    assert (curve.trainer, curve.columns) == (trainer, columns)
    assert curve.steps.tolist() == [1, 2, 3]
    assert curve.entropy == pytest.approx(ENTROPY) and curve.reward == pytest.approx(REWARD)
    assert curve.repeated_steps == 0


def test_what_the_csv_button_of_wandb_writes_is_read_without_its_envelope() -> None:
    """Entropy 0.93^step 0.9, reward 0.6 - 0.2 exp(entropy): the file's own law."""
    (curve,) = read_curves(Path(__file__).parent / "wandb_panel.csv")
    assert curve.trainer == "verl" and curve.columns == ("Step", "actor/entropy", "critic/score/mean")
    assert curve.steps.tolist() == list(range(len(curve.steps))) and len(curve.steps) >= 36
    assert curve.entropy == pytest.approx(0.9 * 0.93**curve.steps, abs=1e-5)
    assert curve.reward == pytest.approx(0.6 - 0.2 * np.exp(curve.entropy), abs=1e-5)
    assert not any("MIN" in name or "MAX" in name for name in curve.rows[0])


def test_a_table_of_several_runs_is_several_curves(tmp_path: Path) -> None:
    """A run that is shorter, or logs at other steps, has empty cells there."""
    text = "Step,a - 1 - actor/entropy,b - actor/entropy,a - 1 - critic/score/mean,b - critic/score/mean\n"
    (tmp_path / "x.csv").write_text(text + "1,0.5,,0.1,\n2,0.4,0.9,0.2,0.6\n4,,0.8,,0.7\n")
    first, second = read_curves(tmp_path / "x.csv")
    assert (first.label, first.steps.tolist(), first.entropy.tolist(), first.reward.tolist()) == (
        "a - 1", [1, 2], [0.5, 0.4], [0.1, 0.2])  # fmt: skip
    assert (second.label, second.steps.tolist(), second.entropy.tolist(), second.reward.tolist()) == (
        "b", [2, 4], [0.9, 0.8], [0.6, 0.7])  # fmt: skip


def test_settings_and_rows_of_a_run_are_kept(tmp_path: Path) -> None:
    curve = read_curve(pyrl_run(tmp_path / "run"))
    assert curve.label == "run" and curve.config == {"seed": 3, "loss.name": "kl_cov"}
    assert [row["step"] for row in curve.rows] == [0, 1, 2, 3]
    assert read_curve(tmp_path / "run", reward="policy_version").reward.tolist() == [0.0, 1.0, 2.0]


def test_given_columns_go_before_recognised_ones(tmp_path: Path) -> None:
    rows = [{"it": s, "entropy": 9.0, "H": h, "reward": 9.0, "acc": r} for s, h, r in zip((5, 6, 7), ENTROPY, REWARD,
                                                                                       strict=True)]  # fmt: skip
    curve = read_curve(lines(tmp_path / "x.jsonl", rows), step="it", entropy="H", reward="acc")
    assert (curve.steps.tolist(), curve.entropy.tolist(), curve.reward.tolist()) == ([5, 6, 7], ENTROPY, REWARD)
    assert curve.trainer == "table" and curve.columns == ("it", "H", "acc")


def test_columns_in_rows_of_their_own_meet_by_step(tmp_path: Path) -> None:
    rows = [{"step": 2, "entropy": 0.5}, {"step": 1, "entropy": 0.9}, {"step": 1, "reward": 0.1},
            {"step": 2, "reward": 0.2}, {"step": 2, "reward": 0.3}, {"step": 3, "lr": 1e-6}]  # fmt: skip
    curve = read_curve(lines(tmp_path / "x.jsonl", rows))
    assert curve.steps.tolist() == [1, 2] and curve.reward.tolist() == [0.1, 0.3] and curve.repeated_steps == 1


def test_missing_cells_are_missing_not_zero(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("step,entropy,reward\n1,0.5,\n2,nan,0.2\n3,0.4,0.3\n4,,\n,0.1,0.1\n")
    curve = read_curve(tmp_path / "x.csv")
    assert curve.steps.tolist() == [1, 2, 3]
    assert np.isnan(curve.reward).tolist() == [True, False, False]
    assert np.isnan(curve.entropy).tolist() == [False, True, False]


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    path = lines(tmp_path / "x.jsonl", [{"step": 1, "entropy": 0.5, "reward": 0.1}])
    path.write_text(path.read_text() + '{"step": 2, "entr')
    assert read_curve(path).steps.tolist() == [1]
    path.write_text('{"step": 2, "entr\n' + path.read_text())
    with pytest.raises(ConfigError, match="line 1 is not JSON"):
        read_curve(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "step,loss,reward\n1,2,3\n", r"recognised as entropy \(--entropy\); it has step, loss, reward"),
        ("x.csv", "a,b\n1,2\n", r"step \(--step\) and entropy \(--entropy\) and reward \(--reward\)"),
        ("x.csv", "step,actor/entropy,train/reward\n1,2,3\n", "entropy and reward of one trainer"),
        ("x.csv", "step,entropy,reward\n1,high,3\n", "'entropy' holds 'high', want a number"),
        ("x.csv", "step,entropy,reward\n1.5,0.1,3\n", "want whole steps"),
        ("x.csv", "step,entropy,reward\n1,-0.5,3\n", r"goes down to -0\.5"),
        ("x.csv", "step,entropy,reward\n", "has no row"),
        ("x.csv", "", "has no row"),
        ("x.csv", "step,entropy,entropy,reward\n1,2,3,4\n", "several columns of 'entropy'"),
        ("x.csv", "step,a - entropy,b - reward\n1,2,3\n", r"recognised as reward \(--reward\)"),
        ("x.jsonl", "[1]\n", "line 1 is not an object"),
        ("x.json", '{"a": 1}', "`log_history`"),
        ("x.json", "{", "not JSON"),
        ("x.log", "nothing here\n", "step:N - name:value"),
        ("x.csv", b"step,entropy\n1,\xff\xfe\n", "codec can't decode"),
    ],
)
def test_what_is_wrong_with_a_log_is_said(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=message) as error:
        read_curve(tmp_path / name)
    assert name in str(error.value)


def test_a_column_that_is_given_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no column 'H' \(--entropy\); it has step, entropy, reward"):
        read_curve(semicolons(tmp_path), entropy="H")


def test_a_folder_of_runs_stands_for_its_runs(tmp_path: Path) -> None:
    pyrl_run(tmp_path / "study" / "b")
    events(tmp_path / "study").rename(tmp_path / "study" / "a")
    (tmp_path / "study" / "logs").mkdir()
    (tmp_path / "x.csv").write_text("")
    assert expand([tmp_path / "x.csv", tmp_path / "study"]) == [tmp_path / n for n in ("x.csv", "study/a", "study/b")]
    with pytest.raises(ConfigError, match=r"logs holds none of metrics\.jsonl"):
        expand([tmp_path / "study" / "logs"])
    with pytest.raises(ConfigError, match="gone does not exist"):
        expand([tmp_path / "gone"])
