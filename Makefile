# make demo [DATA=<nuScenes root>] [MODEL=<preset>] [CHECKPOINT=<file>] [OUT=<folder>]
# make test
# make test-long                    # training until it shows, many minutes
#
# Both create or reuse .venv, install pinned requirements, build the messages, and run. Nothing is installed outside the clone.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# Threads that wait sleep instead of spinning: on a machine with other work that is several times faster (docs/ops.md).
export OMP_WAIT_POLICY ?= PASSIVE

# A sourced ROS installation would put its own rclpy and message types before the wheels in .venv. The same goes for the
# traces that the ROS wheels leave in the environment of a parent process.
unexport PYTHONPATH PYTHONHOME AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH ROS_DISTRO ROS_VERSION ROS_PYTHON_VERSION
unexport _ROS_WHEELS_BOOTSTRAP_COMPLETE
ifneq ($(ROS_DISTRO)$(_ROS_WHEELS_BOOTSTRAP_COMPLETE),)
unexport LD_LIBRARY_PATH
endif

.PHONY: help
help:
	@echo "make demo [DATA=<nuScenes root>] [MODEL=<preset>] [CHECKPOINT=<file>] [OUT=<folder>]   cameras + LiDAR -> voxels over ROS 2"
	@echo "make test                                                                             ruff, mypy, pytest"
	@echo "make docs                                                                             the documentation as a site, in out/docs"
	@echo "make bench [ONLY=<names>]                                                             the short form of every benchmark"
	@echo "make test-long | lint | format | setup | clean"

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "Python 3.11 or 3.12 is needed (the ROS 2 wheels and the pins are checked there); this is $$($(PYTHON) --version). Try: make PYTHON=python3.12 ..."; exit 1; }
	@for tool in gcc cmake; do command -v $$tool >/dev/null || { echo "$$tool is missing (the message package is compiled): sudo apt install build-essential cmake"; exit 1; }; done
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "cannot create $(VENV): sudo apt install python3-venv"; rm -rf $(VENV); exit 1; }
	@mkdir -p $(STAMPS) && touch $@

RUN_REQUIREMENTS := $(foreach name,core nuscenes sim ros train export,requirements/$(name).txt)
$(STAMPS)/run: $(STAMPS)/venv $(RUN_REQUIREMENTS)
	@echo "Installing the pinned requirements into $(VENV) (two to four minutes the first time) ..."
	@$(PIP) install $(foreach file,$(RUN_REQUIREMENTS),-r $(file))
	@touch $@

MESSAGES := $(wildcard fusionocc_msgs/msg/*.msg fusionocc_msgs/srv/*.srv fusionocc_msgs/CMakeLists.txt fusionocc_msgs/package.xml fusionocc_msgs/pyproject.toml fusionocc_msgs/cmake/*)
$(STAMPS)/messages: $(STAMPS)/run $(MESSAGES)
	@echo "Building the message package (about a minute) ..."
	@$(PIP) install --force-reinstall --no-deps ./fusionocc_msgs
	@$(BIN)/python -c 'import tf2_msgs.msg' 2>/dev/null || $(PIP) install --no-deps ./standins/tf2_msgs
	@touch $@

$(STAMPS)/package: $(STAMPS)/run setup.py setup.cfg
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: setup
setup: $(STAMPS)/messages $(STAMPS)/package

$(STAMPS)/test: $(STAMPS)/run requirements/test.txt requirements/colcon.txt requirements/docs.txt
	@echo "Installing the test tools ..."
	@$(PIP) install -r requirements/test.txt
	@touch $@

OUT ?= out/demo
.PHONY: demo
demo: setup
	@$(BIN)/fusionocc demo --out "$(OUT)" $(if $(DATA),--data "$(DATA)") $(if $(MODEL),--model "$(MODEL)") $(if $(CHECKPOINT),--checkpoint "$(CHECKPOINT)")

.PHONY: lint
lint: setup $(STAMPS)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: format
format: $(STAMPS)/test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Fails under the share of covered lines that pyproject.toml sets.
.PHONY: test
test: lint
	$(BIN)/python -m pytest --cov --cov-report=term:skip-covered

# The same tests, with the lines that none of them reaches: on the terminal and in out/coverage/index.html.
.PHONY: coverage
coverage: setup $(STAMPS)/test
	$(BIN)/python -m pytest --cov --cov-report=term-missing:skip-covered --cov-report=html:out/coverage

# Mutated messages of every subscribed type, 10,000 each, against a node in a process of its own (SEED=<n>).
.PHONY: fuzz
fuzz: setup $(STAMPS)/test
	$(BIN)/python tests/ros/fuzz.py --messages $(or $(MESSAGES_EACH),10000) $(if $(SEED),--seed $(SEED))

# Half an hour of sensors at their own rates against a node with a fast network; prints a verdict. MINUTES=<n>
.PHONY: soak
soak: setup $(STAMPS)/test
	$(BIN)/python tests/ros/soak.py --minutes $(or $(MINUTES),30) --out out/soak.json

.PHONY: test-long
test-long: setup $(STAMPS)/test
	$(BIN)/python -m pytest -m long

# The short form of every benchmark, a table each; numbers in out/benchmarks. ONLY="ops presets" runs some of them.
.PHONY: bench
bench: setup
	@$(BIN)/python benchmarks/bench.py $(if $(ONLY),--only $(ONLY))

.PHONY: docs
docs: $(STAMPS)/test
	@$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs out/docs
	@echo "open out/docs/index.html"

.PHONY: clean
clean:
	rm -rf $(VENV) build install log out *.egg-info .pytest_cache .mypy_cache .ruff_cache
