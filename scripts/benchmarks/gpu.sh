#!/usr/bin/env bash
# Everything there is to learn about this project on a GPU, in one command and one report to paste. From anywhere:
#
#     bash scripts/benchmarks/gpu.sh                       # about a quarter of an hour
#     bash scripts/benchmarks/gpu.sh --base_path DATA      # DATA holds 16-shot/sst-2: a published prompt run too
#
# Installs what is missing, runs the tests that need a GPU, times the steps of both tasks with models of published sizes
# in fp32, TF32 and bf16, and, where roberta-large and distilgpt2 can be loaded, does 300 steps of a published prompt run.
# The report is outputs/gpu/report.md; other options are those of scripts/benchmarks/gpu.py (--help).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../help.sh"

[[ -z "${VENV:-}" || "$VENV" == /* ]] || export VENV="$PWD/$VENV"
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

bash install_packages.sh
export TOKENIZERS_PARALLELISM=false
"${VENV:-.venv}/bin/python" -m scripts.benchmarks.gpu "$@"
