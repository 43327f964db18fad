# Everything happens in .venv, which the first target that needs it makes.
# A Python >= 3.12 is taken from PATH or pyenv; where there is none, uv brings one.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test integration units waiting lint types bench slow cuda clean lock

demo: $(STAMP)
	$(BIN)/tilewright demo --out out

# Tests of real servers mostly wait for them, and other tests run meanwhile.
test: $(STAMP)
	$(MAKE) --jobs=2 integration units waiting

integration: $(STAMP)
	$(BIN)/pytest tests/integration -m "not slow and not cuda and not waiting"

units: $(STAMP)
	$(BIN)/pytest tests/unit tests/property tests/parity tests/cuda -m "not slow and not cuda"

waiting: $(STAMP)
	$(BIN)/pytest -m "waiting"

slow: $(STAMP)
	$(BIN)/pytest -m "slow"

cuda: $(STAMP)
	$(BIN)/pytest -m "cuda"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy does not follow editable installs, so it is shown the package as it is laid out when installed.
types: $(STAMP)
	rm -rf build/types && mkdir -p build/types/tilewright
	ln -s $(CURDIR)/tilewright/* build/types/tilewright/
	for wing in catalogs pipeline kernels flows; do ln -s $(CURDIR)/$$wing build/types/tilewright/$$wing; done
	cd build/types && MYPYPATH=. $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p tilewright

bench: $(STAMP)
	$(BIN)/python -m benchmarks

$(STAMP): pyproject.toml requirements.lock tools/python.sh
	sh tools/python.sh $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	touch $(STAMP)

# What is tested is pinned; run this after a change of dependencies. The file names no hosts.
lock:
	$(BIN)/uv pip compile --quiet --no-header --no-emit-index-url --no-annotate --python-version 3.12 \
	  --extra test --extra lint --extra bench --extra all --constraint tools/constraints.txt pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) build out .pytest_cache .mypy_cache .ruff_cache
