# Sourced first by the scripts: --help prints the comment at their top, and does nothing else.
set -euo pipefail

for word in "$@"; do
    if [[ "$word" == --help || "$word" == -h ]]; then
        sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p;}' "$0"
        exit 0
    fi
done
