# make demo: the whole main job on the sample data.  make test: the tests.  Both set up what they need.
PYTHON ?= python3.11
PIP = .venv/bin/python -m pip --disable-pip-version-check
export PIP_NO_INPUT = 1
# pip, and venv by it, asks rustc for its version, and rustup would answer that by writing to the home folder.
export RUSTUP_HOME = $(CURDIR)/.venv/rustup

demo: setup
	@.venv/bin/evergreen run sts

test: setup
	@.venv/bin/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

# The tests of the fault matrix, and docs/reliability.md from them.
reliability: setup
	@.venv/bin/python -m tests.matrix

# Retrainings on a tiny model with kills at random moments, and what is left of them compared with what must be.
N ?= 40
soak: setup
	@.venv/bin/python -m benchmarks.soak --runs $(N)

# Workers and servers of a small fleet killed, cut off and cancelled; ten minutes, mostly of waiting.
fleet: setup
	@.venv/bin/python -m pytest -n 0 -s tests/fleet_stack.py tests/fleet_faults.py

lint: setup
	@.venv/bin/ruff check .

ui: setup
	@.venv/bin/evergreen ui

# The production stack on this machine: PostgreSQL, Prefect, MLflow, a DVC remote and workers, all state in .stack.
stack: setup
	@.venv/bin/python -m infra.stack up

stack-down:
	@.venv/bin/python -m infra.stack down

setup: .venv/done

# torch is installed by its own line: which build of the pinned version comes is the machine's choice.
# antlr4-python3-runtime 4.9.3 (DVC needs it) is the one package that exists only as source.
.venv/done: requirements.lock requirements.train.lock requirements.torch.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not installed; Evergreen needs Python 3.11" >&2; exit 2; }
	@echo "setting up .venv (a few minutes, once)"
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@$(PIP) install -qq --no-deps --require-hashes --only-binary :all: --no-binary antlr4-python3-runtime -r requirements.lock
	@$(PIP) install -qq -r requirements.torch.txt
	@$(PIP) install -qq --no-deps --no-build-isolation --editable .
	@$(PIP) check
	@touch $@

# Resolves requirements.lock and the part of it that training uses anew from pyproject.toml.
COMPILE = CUSTOM_COMPILE_COMMAND="make lock" .venv/bin/pip-compile --quiet --generate-hashes --strip-extras \
  --no-annotate --unsafe-package torch --no-emit-index-url --no-emit-find-links --no-emit-trusted-host
lock: setup
	$(COMPILE) --all-extras --output-file requirements.lock pyproject.toml
	$(COMPILE) --constraint requirements.lock --output-file requirements.train.lock pyproject.toml

.PHONY: demo test reliability soak fleet lint ui stack stack-down setup lock
