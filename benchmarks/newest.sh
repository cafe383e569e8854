#!/usr/bin/env bash
# Installs the newest transformers, transformer-lens and torch, whatever bounds pyproject.toml has for them, into an
# environment of their own, and runs the tests of what touches them. If they pass, raise the bounds to what it prints.
#
#     benchmarks/newest.sh                                        the newest of each
#     benchmarks/newest.sh transformers==5.9.0 torch==2.13.0      these, and the newest of the others
set -euo pipefail
cd "$(dirname "$0")/.."

environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT
python3 -m venv "$environment"
export PATH="$environment/bin:$PATH" VIRTUAL_ENV="$environment" PIP_QUIET=1
unset PYTHONPATH PYTHONHOME

mapfile -t requirements < <(python - "$@" <<'PYTHON'
import re, sys, tomllib

project = tomllib.load(open("pyproject.toml", "rb"))["project"]
name = lambda requirement: re.match(r"[\w-]+", requirement)[0]
given = {name(one): one for one in sys.argv[1:]}
for one in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
    moves = name(one) in ("transformers", "transformer-lens", "torch")
    print(given.get(name(one), name(one) if moves else one))
PYTHON
)
pip install "${requirements[@]}"
pip install --no-deps -e .
python -c 'from importlib.metadata import version
for name in ("transformers", "transformer-lens", "torch"): print(name, version(name))'

# all that makes a model, or spells a name of theirs
mapfile -t tests < <(grep -lE "^(from|import) (families|transformers|transformer_lens|caches)|smollm2" tests/test_*.py)
pytest "${tests[@]}"
