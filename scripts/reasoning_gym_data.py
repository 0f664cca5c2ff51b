"""Write prompts of a reasoning-gym task as JSONL for `data.path`; the reward is `reward.task=reasoning_gym:NAME`.

    python scripts/reasoning_gym_data.py chain_sum train.jsonl --size 5000 --seed 1 min_terms=2 max_terms=4

`key=value`: fields of the task's own config.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml

from pyrl.reward.reasoning_gym import ANSWER_INSTRUCTION, write_rows
from pyrl.reward.tasks import UnknownTaskError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="the task, without reasoning_gym:")
    parser.add_argument("file", type=Path, help="ends in .jsonl")
    parser.add_argument("--size", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0, help="give another one for held-out prompts")
    parser.add_argument("--instruction", default=ANSWER_INSTRUCTION, help="appended to each question")
    parser.add_argument("options", nargs="*", metavar="key=value")
    given = parser.parse_intermixed_args()
    if given.file.suffix != ".jsonl":
        parser.error(f"file {given.file} must end in .jsonl, by which data.path knows the format")
    if malformed := [option for option in given.options if "=" not in option]:
        parser.error(f"option {malformed[0]!r} is not of the form key=value")
    options = {key: yaml.safe_load(value) for key, _, value in (option.partition("=") for option in given.options)}
    try:
        write_rows(given.file, given.name, given.size, given.seed, instruction=given.instruction, **options)
    except (UnknownTaskError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
