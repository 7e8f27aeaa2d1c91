# Each target creates .venv if needed.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
# One large malloc arena: freed blocks are reused instead of being returned to the system and faulted in again (mixing a
# batch takes 0.12 s instead of 0.36 s).
ALLOCATOR := MALLOC_ARENA_MAX=1 MALLOC_MMAP_THRESHOLD_=2147483648 MALLOC_TRIM_THRESHOLD_=8589934592
SUDO := $(shell test "$$(id -u)" = 0 || echo sudo)
CORPUS ?= ../shared/corpus
TEACHER ?= ../shared/teacher
MINUTES ?= 65
# Augmentation of the second and third stages, in which the network has already seen the corpus many times.
VARIETY := $(addprefix --set ,third_source=0.25 room=0.15 layered=0.15 filtered=0.8 other_group=0.7 \
  interference_db=-9:9)
FIGURES := models/weights/base
PAGE := app/web/source
PAGE_TOOLS := $(PAGE)/node_modules/.package-lock.json

.PHONY: help system tools demo serve pin test test-rest test-page soak page lint format bench train evaluate zero-shot ablations clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

# pip compiles what it installs on one core, tests of libraries too.
$(READY): pyproject.toml constraints.txt | system
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
	  --constraint constraints.txt --editable '.[embedded,worker,train,test]'
	-$(BIN)/python -m compileall -qq -j 0 -x '/tests?/' $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
	touch $@

system:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed")'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null && command -v curl >/dev/null && command -v ffprobe >/dev/null || { \
	  $(SUDO) apt-get update -qq && $(SUDO) apt-get install -qq -y python3-venv curl ffmpeg; }

tools: system ## unpack nginx, promtool and wrk from Debian packages into .cache/tools, and install chromium, for tests and the load script
	@command -v nginx >/dev/null && command -v promtool >/dev/null && command -v wrk >/dev/null || test -e .cache/tools/ready || { \
	  mkdir -p .cache/tools && cd .cache/tools && { $(SUDO) apt-get update -qq; \
	  apt-get download -qq nginx prometheus wrk libluajit-5.1-2 && for package in *.deb; do dpkg -x $$package .; done \
	  && rm *.deb && touch ready; } || echo "nginx, promtool or wrk is missing: the tests that need them are skipped"; }
	@command -v chromium >/dev/null || { $(SUDO) apt-get update -qq \
	  && $(SUDO) apt-get install -qq -y --no-install-recommends chromium fonts-dejavu-core >/dev/null; } \
	  || echo "chromium is missing: the tests of the page are skipped"
	@command -v npm >/dev/null && $(MAKE) --no-print-directory $(PAGE_TOOLS) \
	  || echo "npm is missing: the page is tested without its unit tests and without axe"

$(PAGE_TOOLS): $(PAGE)/package-lock.json
	npm ci --prefix $(PAGE) --no-progress --loglevel error && touch $@

page: $(PAGE_TOOLS) ## build the page into app/web/files from app/web/source, and run its unit tests; needs Node
	npm test --prefix $(PAGE)
	npm run build --prefix $(PAGE)

demo: $(READY) ## separate a bundled recording over HTTP with the embedded service
	$(BIN)/python -m app.demo

serve: $(READY) ## run API, queue and one worker on this machine
	$(BIN)/python -m app --embedded

pin: ## pin the images of docker-compose.yml and docker/ to digests (needs docker)
	sh docker/pin.sh

# One thread per process: tests run servers and workers in parallel, and threads that wait for each other double the time.
# Programs that tests start are no parts of this make. They are many: without bytecode, each would compile all its modules.
PYTEST := env -u MAKEFLAGS -u MAKELEVEL -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 $(BIN)/python -m pytest
LARGE_PARTS := models app end_to_end
MODELS_FIRST := $(wildcard tests/models/test_[a-l]*.py)

# Three parts at a time on two cores: test-end_to_end waits for half of its time. It begins first, since it takes longest,
# and small parts come last, so that none is left alone for long. Each has servers and ports of its own. The output of a
# part is printed when it ends. A part that fails keeps others from beginning, and fails the whole.
test: ## run linters and all tests, three parts side by side
	$(MAKE) --no-print-directory --jobs=2 $(READY) tools
	$(MAKE) --no-print-directory --jobs=3 --output-sync=target \
	  $(addprefix test-,end_to_end app models-first) lint $(addprefix test-,models-others rest page)

test-models-first: $(READY)
	$(PYTEST) $(MODELS_FIRST)

test-models-others: $(READY) # also those that are made later
	$(PYTEST) tests/models $(addprefix --ignore=,$(MODELS_FIRST))

test-rest: $(READY) # all others, also those of folders that are made later
	$(PYTEST) $(addprefix --ignore=tests/,$(LARGE_PARTS))

test-page:
	! test -e $(PAGE_TOOLS) || npm test --prefix $(PAGE)

test-%: $(READY)
	$(PYTEST) tests/$*

soak: $(READY) tools ## run the long suites at full length
	EARMARK_SOAK=1 $(BIN)/python -m pytest -m soak

lint: $(READY) ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

format: $(READY) ## format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(READY) ## measure speed and peak memory
	$(BIN)/python -m models bench

train: $(READY) ## train the default separator on CORPUS with TEACHER, in three stages of MINUTES; ship it with --blend runs/half-way
	$(ALLOCATOR) $(BIN)/python -m models train separator \
	  --corpus $(CORPUS) --ear $(TEACHER) --minutes $(MINUTES) --no-prior --run runs/first
	$(ALLOCATOR) $(BIN)/python -m models train separator \
	  --corpus $(CORPUS) --ear $(TEACHER) --minutes $(MINUTES) --from runs/first --run runs/second $(VARIETY) --set band=0.15
	$(BIN)/python -m models ship --run runs/second --blend runs/first --output runs/half-way
	$(ALLOCATOR) $(BIN)/python -m models train separator \
	  --corpus $(CORPUS) --ear $(TEACHER) --minutes $(MINUTES) --from runs/half-way --run runs/base $(VARIETY) --set band=0.25

evaluate: $(READY) ## evaluate the shipped model on CORPUS and write the files that its card shows
	command -v fluidsynth >/dev/null && test -d /usr/share/games/simutrans/music && test -d /usr/share/planetblupi/music \
	  && test -e /usr/share/sounds/sf2/TimGM6mb.sf2 || { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -qq -y \
	  --no-install-recommends fluidsynth timgm6mb-soundfont simutrans-data planetblupi-music-midi; }
	$(BIN)/python -m models evaluate mixtures --corpus $(CORPUS) --output $(FIGURES).figures.json --plot $(FIGURES).gains.png
	$(BIN)/python -m models evaluate worst --corpus $(CORPUS) --figures $(FIGURES).figures.json \
	  --output $(FIGURES).worst.json --plot $(FIGURES).worst.png
	$(BIN)/python -m models evaluate bands --corpus $(CORPUS) --output $(FIGURES).bands.json
	test -d .cache/scores/usr || { mkdir -p .cache/scores && cd .cache/scores && apt-get download -qq mma freedink-data \
	  && for package in *.deb; do dpkg -x $$package .; done && rm *.deb; }
	$(BIN)/python -m models evaluate practical --corpus $(CORPUS) --output $(FIGURES).practical.json
	$(BIN)/python -m models evaluate tagging --corpus $(CORPUS) --output $(FIGURES).tagging.json
	$(BIN)/python -m models evaluate tagging --corpus $(CORPUS) --least-groups 4 --output $(FIGURES).tagging-4.json
	$(BIN)/python -m models evaluate events --corpus $(CORPUS) --output $(FIGURES).events.json
	$(BIN)/python -m models evaluate names --corpus $(CORPUS) --ear $(TEACHER) --output $(FIGURES).names.json

zero-shot: $(READY) ## train a model without ten classes, for MINUTES, and evaluate it on them
	$(ALLOCATOR) $(BIN)/python -m models evaluate zero-shot --corpus $(CORPUS) --minutes $(MINUTES)

ablations: $(READY) ## train small separators, each with one difference to the default; TRANSFORMER: run of a detector
	$(ALLOCATOR) $(BIN)/python -m models ablate --corpus $(CORPUS) --ear $(TEACHER) \
	  $(if $(TRANSFORMER),--transformer $(TRANSFORMER)) --output models/weights/base.ablations.csv

clean: ## delete generated files
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis demo-output *.egg-info $(PAGE)/node_modules
	find . -name __pycache__ -prune -exec rm -rf {} +
