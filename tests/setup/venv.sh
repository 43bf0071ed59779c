#!/usr/bin/env bash
# Make the virtual environment $1 with the first Python >= 3.11 that can, or say in one line what is missing.
set -uo pipefail
target=$1
tried=""
for python in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
  command -v "$python" >/dev/null 2>&1 || continue
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { tried+=" $python (too old);"; continue; }
  "$python" -c 'import venv, ensurepip' 2>/dev/null || { tried+=" $python (no venv: apt-get install python3-venv);"; continue; }
  echo "dino-tower: making $target with $("$python" --version)"
  "$python" -m venv "$target" && exit 0
  rm -rf "$target"   # half an environment would look like a whole one to the next make
  tried+=" $python (venv failed);"
done
echo "dino-tower: Python 3.11 or newer with venv is needed; tried:${tried:- nothing found}. Name one: make PYTHON=/path/to/python3.12" >&2
exit 1
