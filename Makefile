# Every target sets up .venv itself when it is missing or older than pyproject.toml.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo digits test lint format clean
.DELETE_ON_ERROR:

setup: $(BIN)/.installed

$(BIN)/.installed: pyproject.toml constraints.txt
	@if command -v uv >/dev/null; then \
		uv venv --quiet --allow-existing --python $(PYTHON) .venv && \
		uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev,compare]'; \
	else \
		$(PYTHON) -m venv .venv && \
		$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,compare]'; \
	fi
	@touch $@

demo: setup
	$(BIN)/python scripts/demo.py

# the smallest experiment on moving digits, then runs/digits/small/report.html
digits: setup
	for set in train medium sudden; do \
		$(BIN)/python scripts/make_shards.py digits --config configs/digits/data/$$set.yaml || exit; \
	done
	$(BIN)/python scripts/ablate.py --config configs/digits/small.yaml
	$(BIN)/python scripts/report.py --config configs/digits/report.yaml

test: setup
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis *.egg-info
