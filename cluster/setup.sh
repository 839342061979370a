#!/usr/bin/env bash
# Makes .venv from a lock: `setup.sh` or `setup.sh cpu` from cluster/requirements-cpu.txt, `setup.sh gpu` from the other;
# VENV names another folder. `make setup` calls it when the first has changed, and cluster/Dockerfile for its images.
set -euo pipefail
cd "$(dirname "$0")/.."

kind=${1:-cpu}
lock=cluster/requirements-$kind.txt
venv=${VENV:-.venv}
# Only asked if torch's CPU build isn't to be had from where pip is configured to look.
torch_index=https://download.pytorch.org/whl/cpu

fail() {
    echo "setup: $*" >&2
    exit 1
}

suits() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null
}

# A version manager's shim may be found and still not run, so each candidate is tried.
python=
seen=
for candidate in ${PYTHON:-python3.11 python3.12 python3 python}; do
    if suits "$candidate"; then
        python=$candidate
        break
    fi
    version=$("$candidate" --version 2>/dev/null || true)
    seen+=${version:+"; $candidate is $version"}
done
[ -f "$lock" ] || fail "there is no $lock: say cpu or gpu"
[ -n "$python" ] || fail "Python 3.11 or 3.12 is needed and was not found${seen}. Install one, or name it: make setup PYTHON=/path/to/python3.11"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python can't make virtual environments: install its venv module (Debian, Ubuntu: apt-get install python3-venv)"
command -v "${CXX:-c++}" >/dev/null || command -v g++ >/dev/null ||
    fail "a C++ compiler is needed and was not found (Debian, Ubuntu: apt-get install g++)"
headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
[ -f "$headers/Python.h" ] ||
    fail "the headers of $python are missing (Debian, Ubuntu: apt-get install python3-dev)"
# Its kernels for CPUs are linked to it, and vLLM only says so in the log of an engine that doesn't start.
[ "$kind" = gpu ] || "$python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null ||
    fail "vLLM needs libnuma, which was not found (Debian, Ubuntu: apt-get install libnuma1)"

# Beside the build for CPUs, pip takes that for GPUs for installed.
[ "$kind" = gpu ] && [ -e "$venv/.complete" ] && fail "$venv holds what make setup installs for CPUs: VENV=.venv-gpu $0 gpu"
if [ ! -x "$venv/bin/python" ] || ! suits "$venv/bin/python"; then
    "$python" -m venv --clear "$venv"
fi
pip=("$venv/bin/python" -m pip --disable-pip-version-check --no-input -qq install --no-deps)

echo "setup: installing $(grep -c '==' "$lock") packages into $venv (cpu: about 2 minutes, 4 GB)"
if [ "$kind" = cpu ]; then
    torch=$(grep '^torch==' "$lock")
    "${pip[@]}" "$torch" 2>/dev/null || "${pip[@]}" --index-url "$torch_index" "$torch" ||
        fail "$torch was found neither where pip looks nor at $torch_index"
fi
# Without dependencies: the lock is complete, and what it leaves out on purpose must stay out.
"${pip[@]}" -r "$lock"
"${pip[@]}" --no-build-isolation --editable .
echo "setup: done"
