#!/usr/bin/env bash
# Scores a run on AIME 2024 and 2025: its final policy, or a newer checkpoint, or the checkpoint that is given.
# Usage: evaluate_aime.sh RUN | RUN/checkpoints/step_NNNNNN | MODEL [key=value ...]
# PYRL_DATA_DIR or data_dir=FOLDER holds aime24.parquet and aime25.parquet. Writes RUN/evaluations/aime-NAME; called
# again, it goes on there. A checkpoint is first written as a Hugging Face folder, RUN/hf/NAME.
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$repository/.venv/bin/python}
[[ $# -ge 1 ]] || { sed -n '3s/^# //p' "${BASH_SOURCE[0]}" >&2; exit 2; }
given=${1%/} checkpoint='' model=''
shift

if [[ -f $given/manifest.json ]]; then
    checkpoint=$given run=$(dirname "$(dirname "$given")")
elif [[ -f $given/config.json ]]; then
    model=$given run=$given
else
    run=$given final=$given/final/config.json
    checkpoint=$(find "$given/checkpoints" -maxdepth 1 -name 'step_*' 2>/dev/null | sort | tail -n 1 || true)
    # A run that was given more steps leaves its earlier end behind.
    if [[ -f $final && ! $checkpoint -nt $final ]]; then
        model=$given/final checkpoint=
    fi
    [[ -n $checkpoint$model ]] || { echo "error: $given holds no model, no final/ and no checkpoint" >&2; exit 2; }
fi
if [[ -n $checkpoint ]]; then
    model=$run/hf/$(basename "$checkpoint")
    [[ -d $model ]] || "$python" -m pyrl convert "$checkpoint" "$model"
fi
exec "$python" -m pyrl evaluate "$repository/configs/eval/aime.yaml" "model=$model" "$@" \
    --folder "$run/evaluations/aime-$(basename "$model")"
