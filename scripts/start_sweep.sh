# What sweep_fsc.sh, sweep_sum.sh and sweep_chat.sh share; they source it with the task and their words. --help is their first comment.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/help.sh"

[[ -z "${VENV:-}" || "$VENV" == /* ]] || export VENV="$PWD/$VENV"
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${VENV:-$root/.venv}/bin/python"
# An environment that is activated and has the project is used as it is.
if [[ -z "${VENV:-}" ]] && "${VIRTUAL_ENV:-/none}/bin/python" -c 'import common.training.sweep_run' &>/dev/null; then
    python="$VIRTUAL_ENV/bin/python"
else
    bash "$root/install_packages.sh"
fi
exec "$python" "$root/scripts/sweep.py" "$@"
