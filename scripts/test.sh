#!/usr/bin/env bash
# Sets everything up where needed, then runs lint, format check, type check and the tests. From anywhere:
#
#     bash scripts/test.sh                          # the fast tests
#     bash scripts/test.sh --slow                   # these and the slow ones
#     bash scripts/test.sh tests/common -k list_mle # other arguments go to pytest
set -euo pipefail

[[ -z "${VENV:-}" || "$VENV" == /* ]] || export VENV="$PWD/$VENV"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

pytest_arguments=()
for argument in "$@"; do
    if [[ "$argument" == --slow ]]; then
        pytest_arguments+=(-m "")
    else
        pytest_arguments+=("$argument")
    fi
done

bash install_packages.sh

# Tests fetch nothing, and few threads are faster than many on models this small.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"
export HF_HUB_OFFLINE=1
export HF_DATASETS_OFFLINE=1
export TOKENIZERS_PARALLELISM=false
unset HYDRA_FULL_ERROR

python="${VENV:-.venv}/bin/python"
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
"$python" -m pytest "${pytest_arguments[@]+"${pytest_arguments[@]}"}"
