#!/usr/bin/env bash
# Sets everything up where needed, then runs lint, format check, type check and the tests. From anywhere:
#
#     bash scripts/test.sh                          # the fast tests
#     bash scripts/test.sh --slow                   # these and the slow ones
#     bash scripts/test.sh tests/common -k list_mle # other arguments go to pytest
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"

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

# Tests fetch nothing. They run in as many processes as there are cores, four at most, with one thread each: on models
# this small more threads gain nothing.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export HF_HUB_OFFLINE=1
export HF_DATASETS_OFFLINE=1
export TOKENIZERS_PARALLELISM=false
unset HYDRA_FULL_ERROR

python="${VENV:-.venv}/bin/python"
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
"$python" -m pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile "${pytest_arguments[@]+"${pytest_arguments[@]}"}"
