# make demo | make test | make test-cluster
# VENV=path chooses the environment, PYTHON=python3.12 the interpreter it is made with, DATA=path/to/DAVIS real video.

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin/python

.PHONY: demo test test-cluster lint clean

demo: $(VENV)/.installed
	$(BIN) jobs/demo.py $(if $(DATA),--data "$(DATA)") $(ARGS)

test: $(VENV)/.installed-test
	$(BIN) -m pytest -m "not cluster" -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-cluster: $(VENV)/.installed-test
	$(BIN) -m pytest -m cluster $(ARGS)

lint: $(VENV)/.installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

clean:
	rm -rf $(VENV) runs

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "error: $(PYTHON) is older than Python 3.10; name a newer one: make demo PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN) -m pip install --quiet --upgrade pip
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml requirements.lock
	@echo "installing vosforge into $(VENV) (about 7 GB with torch; a few minutes)"
	$(BIN) -m pip install --quiet --constraint requirements.lock --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN) -m pip install --quiet --constraint requirements.lock --editable ".[test]"
	@touch $@
