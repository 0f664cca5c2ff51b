"""Config files: every mistake is one message that names field, value and remedy; every committed file loads."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml

from pyrl.config import ClipCov, ConfigError, KLCov, PPOClip, RunConfig, load_config, parse_config

FOLDER = Path(__file__).resolve().parents[1] / "configs"
# Studies and evaluations are other things: tests/study, tests/evaluation.
CONFIGS = sorted(path for path in FOLDER.rglob("*.yaml") if path.parent.name not in ("study", "eval"))
REQUIRED = {"model": {"path": "m"}, "data": {"path": "d"}}
REQUIRED_OVERRIDES = ["model.path=m", "data.path=d", "data.validation_path=v"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(REQUIRED))
    return path


def test_there_are_committed_configs() -> None:
    assert {"quickstart", "smollm2-135m_dapo-math"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_committed_config_loads_and_holds_only_differences(path: Path) -> None:
    config = load_config(path, REQUIRED_OVERRIDES)
    assert isinstance(config, RunConfig)
    defaults = parse_config(REQUIRED).model_dump(mode="json")
    given = leaves(yaml.safe_load(path.read_text()))
    repeated = [".".join(key) for key, value in given if value == lookup(defaults, key)]
    assert not repeated, "these repeat the default; a config holds differences"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_committed_config_names_no_data_path(path: Path) -> None:
    tree = yaml.safe_load(path.read_text())
    assert "path" not in tree.get("model", {}) and "path" not in tree.get("data", {})
    with pytest.raises(ConfigError, match=r"data\.path: required but not given\..*DAPO-Math-17k"):
        load_config(path, ["model.path=m"])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_resolved_config_round_trips(path: Path, tmp_path: Path) -> None:
    config = load_config(path, REQUIRED_OVERRIDES)
    resolved = tmp_path / "config.yaml"
    resolved.write_text(config.to_yaml())
    assert load_config(resolved) == config
    assert load_config(resolved).to_yaml() == config.to_yaml()
    assert set(yaml.safe_load(resolved.read_text())) == set(RunConfig.model_fields)  # every default written out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.learning_rate=1", r"optimizer\.learning_rate: unknown key; known here: lr, betas, .*clip_grad"),
        ("learning_rate=1", r"learning_rate: unknown key; known here: seed, steps, .*optimizer"),
        ("rollout.sample_per_prompt=4", r"rollout\.sample_per_prompt: unknown key; did you mean 'samples_per_prompt'"),
        ("stepz=4", r"stepz: unknown key; did you mean 'steps'"),
        ("rollout.dynamic_sampling.enable=true", r"rollout\.dynamic_sampling\.enable: unknown key.*'enabled'"),
        ("loss={name: kl_cov, kl_cov_ration: 0.1}", r"kl_cov_ration: unknown key; did you mean 'kl_cov_ratio'"),
    ],
)
def test_unknown_key_names_the_nearest_or_all_that_are_known(file: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(file, [override])


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("steps=many", "steps", "'many'"),
        ("steps=0", "steps", "0"),
        ("steps=1.5", "steps", "1.5"),
        ("seed=-1", "seed", "-1"),
        ("optimizer.lr=0", "optimizer.lr", "0"),
        ("parallel.tp=[2]", "parallel.tp", r"\[2\]"),
        ("model.dtype=fp8", "model.dtype", "'fp8'"),
        ("model.attention=eager", "model.attention", "'eager'"),
        ("rollout.top_p=1.5", "rollout.top_p", "1.5"),
        ("loss={name: kl_cov, kl_cov_ratio: 1.5}", "kl_cov_ratio", "1.5"),
        ("loss={name: clip_cov, clip_cov_ratio: -0.1}", "clip_cov_ratio", "-0.1"),
        ("loss={name: ppo}", "loss", "'ppo'"),
        ("data=5", "data", "5"),
        ("loss={name: clip_cov, clip_cov_ub: .inf}", "clip_cov_ub", "finite.*inf"),
        ("loss={name: kl_cov, kl_cov_coef: .nan}", "kl_cov_coef", "finite.*nan"),
        ("rollout.timeout_seconds=inf", "rollout.timeout_seconds", "finite.*inf"),
        ("steps=true", "steps", "number.*True"),
        ("optimizer.betas=[true, 0.9]", r"optimizer\.betas\.0", "number.*True"),
    ],
)
def test_wrong_type_and_bounds_name_field_and_value(file: Path, override: str, field: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s){field}.*{value}"):
        load_config(file, [override])


@pytest.mark.parametrize("advantage", ["grpo", "dr_grpo", "rloo", "reinforce_plus_plus_baseline"])
def test_one_sample_a_prompt_needs_an_advantage_without_the_groups_mean(file: Path, advantage: str) -> None:
    one = "rollout.samples_per_prompt=1"
    with pytest.raises(ConfigError, match=rf"samples_per_prompt 1 with algorithm\.advantage {advantage}.*would be 0"):
        load_config(file, [one, f"algorithm.advantage={advantage}"])
    load_config(file, [one, "algorithm.advantage=reinforce_plus_plus"])
    with pytest.raises(ConfigError, match="every group would be dropped"):
        load_config(file, [one, "algorithm.advantage=reinforce_plus_plus", "rollout.dynamic_sampling.enabled=true"])


@pytest.mark.parametrize("loss", ["ppo_clip", "clip_higher", "cispo", "clip_cov", "kl_cov"])
def test_no_number_may_be_a_boolean(loss: str) -> None:
    """pydantic reads true as 1, unless a field says otherwise."""
    tree = REQUIRED | {"loss": {"name": loss}, "parallel": {"threads": 1}, "rollout": {"threads": 1}}
    resolved = parse_config(tree).model_dump(mode="json")
    resolved["model"]["padded_vocab_size"] = 128
    numbers = [key for key, value in leaves(resolved) if type(value) in (int, float)]
    assert len(numbers) > 40
    for *sections, name in numbers:
        changed = copy.deepcopy(resolved)
        lookup(changed, sections)[name] = True
        with pytest.raises(ConfigError, match=rf"{name}: .*wanted a number \(got True\)"):
            parse_config(changed)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rollout.temperature=0.7"], "temperature 0.7"),
        (["rollout.temperature=1e-14"], "temperature: Input should be greater than or equal to 0.000001"),
        (["loss={name: clip_cov, clip_cov_lb: 5, clip_cov_ub: 5}"], "clip_cov_lb 5.0 must be below clip_cov_ub 5.0"),
        (["algorithm.updates_per_rollout=9", "rollout.prompts_per_step=8"], "updates_per_rollout 9 exceeds"),
        (["parallel.sequence_parallel=true"], "sequence_parallel needs parallel.tp > 1"),
        (["rollout.request_timeout_seconds=7200"], "request_timeout_seconds 7200 exceeds timeout_seconds 3600"),
        (["validation.every=5"], "data.validation_path is not"),
        (["model.padded_vocab_size=1001", "parallel.tp=2"], "1001 is not divisible by parallel.tp 2"),
    ],
)
def test_fields_that_disagree_are_refused(file: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(file, overrides)


def test_every_problem_is_reported_at_once(file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(file, ["steps=0", "optimizer.lr=-1", "rollout.tpp=1"])
    assert all(field in str(caught.value) for field in ("steps", "optimizer.lr", "rollout.tpp"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "holds list, not a mapping"),
        ("a: [1\n", "is not valid YAML"),
        ("", r"model: required|model\.path: required"),
    ],
)
def test_broken_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml does not exist"):
        load_config(tmp_path / "absent.yaml")


@pytest.mark.parametrize("override", ["steps", "=4", "steps.deep=4"])
def test_malformed_override_is_named(tmp_path: Path, override: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**REQUIRED, "steps": 3}))
    with pytest.raises(ConfigError, match=f"override '{override}'"):
        load_config(path, [override])


def test_overrides_win_and_are_read_as_yaml(file: Path) -> None:
    config = load_config(
        file,
        [
            "optimizer.lr=1e-3",
            "deterministic=true",
            "optimizer.betas=[0.8, 0.9]",
            "loss.name=kl_cov",
            "seed=1",
            "seed=2",
        ],
    )
    assert config.optimizer.lr == 1e-3  # YAML 1.1 reads this as a string
    assert config.deterministic is True
    assert config.optimizer.betas == (0.8, 0.9)
    assert config.loss == KLCov(name="kl_cov")
    assert config.seed == 2


def test_loss_block_chooses_its_class() -> None:
    assert parse_config(REQUIRED).loss == PPOClip()
    clip_cov = parse_config({**REQUIRED, "loss": {"name": "clip_cov"}}).loss
    assert isinstance(clip_cov, ClipCov)
    assert (clip_cov.clip_ratio_low, clip_cov.clip_ratio_high) == (1.0, 1.0)  # the paper's [0, 2]


def test_config_is_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse_config(REQUIRED).steps = 5


def leaves(tree: dict, prefix: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], object]]:
    found = []
    for key, value in tree.items():
        found += leaves(value, (*prefix, key)) if isinstance(value, dict) else [((*prefix, key), value)]
    return found


def lookup(tree: dict, key: tuple[str, ...]) -> object:
    for part in key:
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree
