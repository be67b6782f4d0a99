# Every target sets itself up: .venv is made when it is missing and mended when one of the three files below changes.
PYTHON  ?=
PROFILE ?= smoke
JOBS    ?=
PORT    ?= 8000
run     := .venv/bin/python

.PHONY: book pdf test bench lint format serve clean lock

book: .venv/.ready  ## execute what changed, render the pages
	@$(run) -m tools.execute --profile $(PROFILE) $(if $(JOBS),--jobs $(JOBS))
	@$(run) -m tools.render --profile $(PROFILE)

test: .venv/.ready  ## everything that CI runs
	$(run) -m ruff check . && $(run) -m ruff format --check .
	$(run) -m tools.notebooks check
	OMP_NUM_THREADS=1 $(run) -m pytest -q -n $(or $(JOBS),2) --dist loadfile
	$(run) -m tools.notebooks nbval
	$(run) -m tools.execute
	$(run) -m tools.render
	$(run) -m pytest -q -m book

bench: .venv/.ready  ## resnet_lib against its peers
	@$(run) -m benchmarks

lint: .venv/.ready  ## ruff on code and notebooks, and notebook hygiene
	$(run) -m ruff check . && $(run) -m ruff format --check .
	$(run) -m tools.notebooks check

format: .venv/.ready
	$(run) -m ruff check --fix .
	$(run) -m ruff format .

serve: book  ## the pages on localhost
	@echo "the book: http://localhost:$(PORT)/   (Ctrl-C ends)"
	@$(run) -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

pdf: book  ## the pages on paper: _build/book.pdf; needs a Chromium
	@$(run) -m tools.paper

clean:  ## what was built; .venv stays (rm -rf .venv for that)
	rm -rf _build build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

# pip installs what constraints.txt pins; a half-made .venv has no pip yet and is made again
.venv/.ready: requirements.txt constraints.txt pyproject.toml
	@set -e; if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then \
	  for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
	    if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "The book needs Python 3.11 or newer, and $(or $(PYTHON),python3) is not. Name one: make PYTHON=python3.12" >&2; \
	    exit 1; \
	  fi; \
	  echo "making .venv with $$($$found --version)"; \
	  $$found -m venv --clear .venv; \
	fi
	@echo "installing requirements.txt into .venv (the first time some minutes and 6 GB)"
	@$(run) -m pip install -qq --disable-pip-version-check -r requirements.txt -c constraints.txt
	@$(run) -m pip install -qq --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

# makes constraints.txt anew; needs uv on the path. torch stays free on macOS, where old systems have no newest wheel
lock:
	uv pip compile --quiet --upgrade --universal --python-version 3.11 --no-annotate --no-header \
	  --custom-compile-command "make lock" requirements.txt -o constraints.tmp
	{ echo "# The set that CI installs, for Python 3.11 to 3.13. Made by: make lock"; \
	  sed -E "s/^(torch|torchvision)(==[^ ;]+)$$/\1\2 ; sys_platform != 'darwin'/" constraints.tmp; } > constraints.txt
	rm constraints.tmp
