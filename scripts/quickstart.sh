#!/usr/bin/env bash
# From a fresh machine with only Python to trained policies: installs, runs both tasks on the built-in models and shows
# what came out. From anywhere:
#
#     bash scripts/quickstart.sh                   # seed 0
#     bash scripts/quickstart.sh random_seed=1     # any options of prompt_task/run_fsc.py
#
# A run that was cut off is continued; one that is complete is shown again. The options are those of the prompt task.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/help.sh"

[[ -z "${VENV:-}" || "$VENV" == /* ]] || export VENV="$PWD/$VENV"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash install_packages.sh

# The models are tiny: one thread is as fast as many, and leaves the machine to others.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export HF_HUB_OFFLINE=1
export TOKENIZERS_PARALLELISM=false

python="${VENV:-.venv}/bin/python"
"$python" prompt_task/run_fsc.py --config-name=builtin resume=auto "$@"

summaries=outputs/sum/quickstart
for guidance in none sequence token; do
    "$python" sum_task/run_sum.py --config=configs/sum_noisy_builtin.yaml --guidance="$guidance" \
        --output_dir="$summaries/$guidance" --resume
done
"$python" - "$summaries" <<'END'
import json, sys
results = {name: json.load(open(f"{sys.argv[1]}/{name}/results.json")) for name in ("none", "sequence", "token")}
print("\nSummaries learnt from references half of which are bad: ROUGE-L on clean test reports")
print(f"  before training      {results['none']['untrained_rougeL']:.1f}")
for name, found in results.items():
    print(f"  guidance={name:<11} {found['test_rougeL']:.1f}   {sys.argv[1]}/{name}/report.html")
END
