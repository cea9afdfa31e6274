#!/usr/bin/env bash
# From a fresh machine with only Python to trained policies: installs, runs all three tasks on the built-in models and
# shows what came out, in under five minutes once all is installed. From anywhere:
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
say() { printf '\n== %s\n' "$*"; }

say "1 of 3: a reward of every token of a reply, from rankings of whole replies"
"$python" chat_task/run_chat.py --config=configs/chat_builtin.yaml --output_dir=outputs/chat/quickstart --resume

"$python" - <<'END'
from common.reporting.terminal import coloured
from common.token_reward_model import TokenRewardModel
model = TokenRewardModel.from_pretrained("outputs/chat/quickstart/reward_model")
source = "hundreds of nurses stopped work in glenwood on wednesday . they ask for better pensions ."
[scored] = model.score_texts(["nurses in corvale began a strike for pensions on wednesday ."], sources=[source])
print(f"\nto read:  {source}\nreply:    {coloured(scored.tokens, scored.rewards, 0, 1)}")
END

say "2 of 3: prompts that make a frozen language model classify"
# A pool of scored prompts: a third of the time, and the same accuracy here (docs/results.md).
"$python" prompt_task/run_fsc.py --config-name=builtin resume=auto reward_pool_size=256 "$@"

say "3 of 3: summaries learnt from references half of which are bad"
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
