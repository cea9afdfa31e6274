#!/usr/bin/env bash
# From a fresh machine with only Python to trained policies: installs, runs both tasks on the built-in models and shows
# what came out. From anywhere:
#
#     bash scripts/quickstart.sh                   # seed 0
#     bash scripts/quickstart.sh random_seed=1     # any options of prompt_task/run_fsc.py
#
# A run that was cut off is continued; one that is complete is shown again. The options are those of the prompt task.
set -euo pipefail

[[ -z "${VENV:-}" || "$VENV" == /* ]] || export VENV="$PWD/$VENV"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash install_packages.sh

# The models are tiny: one thread is as fast as many, and leaves the machine to others.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export HF_HUB_OFFLINE=1
export TOKENIZERS_PARALLELISM=false

python="${VENV:-.venv}/bin/python"
"$python" prompt_task/run_fsc.py --config-name=builtin resume=auto "$@"

"$python" sum_task/run_sum.py --config=configs/sum_builtin.yaml --output_dir=outputs/sum/quickstart --resume
