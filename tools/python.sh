#!/bin/sh
# Make a virtual environment of Python >= 3.12 in the folder given, unless there is one.
set -eu
venv=$1
good() { "$1" -c 'import sys, venv; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; }

[ -x "$venv/bin/python" ] && good "$venv/bin/python" && exit 0
rm -rf "$venv"
for python in python3.12 python3.13 python3 python "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12*/bin/python \
  "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.13*/bin/python; do
  if command -v "$python" >/dev/null 2>&1 && good "$python"; then
    exec "$python" -m venv "$venv"
  fi
done
echo "no Python >= 3.12 on PATH or in pyenv: uv brings one" >&2
if ! command -v uv >/dev/null 2>&1; then
  python3 -m venv "$venv-uv"
  "$venv-uv/bin/pip" install --quiet uv
  PATH="$PWD/$venv-uv/bin:$PATH"
fi
exec uv venv --quiet --seed --python 3.12 "$venv"
