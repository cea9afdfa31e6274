#!/usr/bin/env bash
# Installs everything the project needs into its own virtual environment: .venv in this checkout, or $VENV where set.
#
#     bash install_packages.sh
#
# Needs Python 3.11 or newer (PYTHON=/path/to/python3 chooses one) and a package index. Call it as often as you like:
# once all is installed it returns at once. An installation that was cut off is completed by the next call.
# On Linux the usual index brings torch with CUDA; for the much smaller build without, set
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu for the first call.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/scripts/help.sh"

root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
venv="${VENV:-$root/.venv}"
[[ "$venv" == /* ]] || venv="$PWD/$venv"
cd "$root"

say() { printf 'install: %s\n' "$*" >&2; }
fail() {
    say "error: $*"
    exit 1
}

# What an up-to-date environment was made from. The stamp that records it is written last, so it vouches for the whole.
stamp="$venv/token-guidance-installed.txt"
ours="$venv/token-guidance-made-this.txt"
place="checkout $root, environment $venv"
wanted="$place
$(cat requirements.txt setup.py pyproject.toml)
packages: $(echo */__init__.py)"

up_to_date() { [[ -f "$stamp" && "$(<"$stamp")" == "$wanted" ]] && "$venv/bin/python" -c '' 2>/dev/null; }

is_suitable() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.14 python; do
        if is_suitable "$candidate"; then
            printf '%s\n' "$candidate"
            return
        elif [[ "$candidate" == "${PYTHON:-}" ]]; then
            fail "PYTHON=$PYTHON is not a Python 3.11 or newer"
        fi
    done
    fail "needs Python 3.11 or newer, but python3 here is: $(command -v python3 >/dev/null && python3 --version || echo none)." \
        "Install a newer one, or name it: PYTHON=/path/to/python3.11 bash install_packages.sh"
}

# True where every file that the installed packages list is there in its recorded size, which it is not for a package
# whose unpacking was cut off.
is_intact() {
    "$venv/bin/python" - <<'PYTHON_END'
import importlib.metadata
import sys


def is_whole(file):
    path = file.locate()
    return path.is_file() and file.size in (None, path.stat().st_size)


sys.exit(not all(package.files and all(map(is_whole, package.files)) for package in importlib.metadata.distributions()))
PYTHON_END
}

# What somebody else made is neither judged nor deleted.
is_ours() { [[ "$venv" == "$root/.venv" || -f "$ours" ]]; }

make_environment() {
    local python
    if ! is_ours && [[ -d "$venv" && -n "$(ls -A "$venv")" ]]; then
        fail "$venv is neither empty nor a whole environment with Python 3.11 or newer; delete it or choose another VENV"
    fi
    python="$(find_python)"
    "$python" -c 'import ensurepip, venv' 2>/dev/null || fail "this Python cannot make virtual environments;" \
        "on Debian and Ubuntu this mends it: sudo apt-get install $(
            "$python" -c 'import sys; print(f"python3.{sys.version_info[1]}-venv")'
        )"
    say "making the virtual environment $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
    printf '%s\n' "$root" >"$ours"
}

install_all() {
    "$venv/bin/python" -m pip install --quiet --no-input --disable-pip-version-check -r requirements.txt &&
        "$venv/bin/python" -m pip install --quiet --no-input --disable-pip-version-check \
            --no-deps --no-build-isolation --editable .
}

# The checkout that an environment was made for, where it lies outside of it.
owner() {
    local first
    if [[ -s "$ours" ]]; then
        head -n 1 "$ours"
    elif [[ -f "$stamp" ]]; then
        first="$(head -n 1 "$stamp")"
        first="${first#checkout }"
        printf '%s\n' "${first%, environment *}"
    fi
}

if up_to_date; then
    exit 0
fi
other="$(owner)"
if [[ "$venv" != "$root/.venv" && -n "$other" && "$other" != "$root" && -e "$other/install_packages.sh" ]]; then
    fail "$venv is the environment of the checkout $other; choose another VENV"
fi

mkdir -p "$(dirname "$venv")"
if command -v flock >/dev/null; then
    exec 9>"$venv.lock"
    if ! flock --nonblock 9; then
        say "another installation is under way; waiting for it"
        flock 9
        if up_to_date; then
            exit 0
        fi
    fi
fi

# An environment is used as it stands if its Python and pip work and it was not copied from another place, which its
# scripts would name.
if [[ -f "$stamp" && "$(head -n 1 "$stamp")" != "$place" ]] || ! is_suitable "$venv/bin/python" ||
    ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    make_environment
fi
rm -f "$stamp"

started=$SECONDS
say "installing the packages of requirements.txt (the first time this can take some minutes)"
install_all || fail "pip could not install the packages, see above; run this again once that is mended"
if is_ours && ! is_intact; then
    say "an earlier installation was cut off in the middle; starting afresh"
    make_environment
    install_all || fail "pip could not install the packages, see above; run this again once that is mended"
fi
# Only METEOR needs it, and a run that does says so: its absence does not fail the installation.
"$venv/bin/python" scripts/install_wordnet.py >&2 || say "WordNet, which METEOR needs, could not be installed; see above"
printf '%s\n' "$wanted" >"$stamp"
say "done in $((SECONDS - started)) s; the environment is $venv"
