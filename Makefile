# The virtual environment is made once; `make clean` removes it.
PYTHON ?= python3
BIN = .venv/bin
ARGS ?=
# `make test EXTRAS=all` also installs what the tests of clusters and PostgreSQL need.
EXTRAS ?= dev

run: .venv/ready
	$(BIN)/python -m expkit $(ARGS)

# Several tests at once, whose threads do not spin while they wait, then one by one those that measure
# times. 5: none of a kind was asked for.
test: .venv/ready
	OMP_WAIT_POLICY=passive OPENBLAS_THREAD_TIMEOUT=4 \
	$(BIN)/python -m pytest -n 4 --dist loadgroup -m "not alone" $(ARGS) || [ $$? = 5 ]
	$(BIN)/python -m pytest -m alone $(ARGS) || [ $$? = 5 ]

lint: .venv/ready types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/ready
	$(BIN)/mypy expkit plugins tests benchmarks docs/make.py docs/optimizers.py docs/tutorials.py

bench: .venv/ready
	$(BIN)/python -m benchmarks

docs: .venv/ready
	$(BIN)/python docs/make.py

# Pictures of the pages, for docs/: needs chromium, and EXTRAS=all.
screenshots: .venv/ready
	EXPKIT_SCREENSHOTS=docs $(BIN)/python -m pytest tests/test_browser.py

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@

clean:
	rm -rf .venv build *.egg-info

.PHONY: run test lint types bench docs screenshots clean
