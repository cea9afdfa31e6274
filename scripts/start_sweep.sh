# What sweep_fsc.sh, sweep_sum.sh and sweep_chat.sh share; they source it with the task and their words. --help is their first comment.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/help.sh"

[[ -z "${VENV:-}" || "$VENV" == /* ]] || export VENV="$PWD/$VENV"
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
bash "$root/install_packages.sh"
exec "${VENV:-$root/.venv}/bin/python" "$root/scripts/sweep.py" "$@"
