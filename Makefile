# All commands for development. Each does its own set-up; `make help` lists them. PYTHON is the
# interpreter that creates .venv; PIP_ARGS is passed to pip (a mirror, --no-index, ...).

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help tools tools-rust setup build demo test test-rust test-isa test-python test-long \
	test-sample campaign-sample campaign test-neon fuzz fuzz-sample results bench bench-kernels \
	bench-networks bench-readme bench-zoo ladder lint fmt docs clean

PYTHON ?= python3
PIP_ARGS ?=
# The folder of data sets, and the number of training runs at a time.
DATA ?= $(if $(FATNN_DATA),$(FATNN_DATA),data)
JOBS ?= 1
# The folder where `make ladder` stores its measurements.
LADDER ?= runs/ladder
# A campaign's kind of trials, its length, and the seed of its first trial (empty: random).
KIND ?= all
MINUTES ?= 5
SEED ?=
# Fuzzing time per target.
FUZZ_SECONDS ?= 10
# Selects the long tests of a sample.
SAMPLE ?= $(shell git rev-list --count HEAD 2>/dev/null || echo 0)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

tools: # list the tools that this machine lacks, and how to get them
	@PYTHON=$(PYTHON) bash scripts/check-tools.sh

tools-rust: # the same without Python
	@PYTHON= bash scripts/check-tools.sh

$(READY): pyproject.toml | tools
	@echo "==> making $(VENV): PyTorch and the rest (a few minutes the first time)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python scripts/dev_requirements.py > $(VENV)/requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) \
		-r $(VENV)/requirements.txt
	touch $@

build: $(READY) # compile the extension module into .venv
	@echo "==> building the Rust core"
	VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/maturin develop --release --quiet

setup: build ## create .venv with everything in it
	@$(BIN)/fatnn info

demo: build ## train, convert, verify and run a ternary network on real data; prints a table
	$(BIN)/fatnn demo

test: test-rust test-isa test-python ## all tests of the core and the package

# With the feature of the command line, so that the crate is compiled only once.
CARGO_TEST := cargo test --package fatnn --features cli --quiet
# Tests of kernels and of other code that depends on the CPU.
ISA_TESTS := conv depthwise golden int8 network pool quantize residual shortcut

test-rust: tools-rust
	@echo "==> tests of the core"
	$(CARGO_TEST)

test-isa: tools-rust # kernels again, limited to lower instruction sets
	@for isa in scalar avx2; do \
		echo "==> tests of kernels with FATNN_ISA=$$isa"; \
		FATNN_ISA=$$isa $(CARGO_TEST) $(addprefix --test ,$(ISA_TESTS)); done

test-python: build
	@echo "==> tests of the package"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-long: build ## every test at full length, then a campaign of MINUTES (an hour in all)
	FATNN_TEST_LONG=1 $(MAKE) test-rust test-isa
	$(BIN)/python -m pytest --long=all --timeout=900
	$(MAKE) campaign

test-sample: build campaign-sample # a quarter of the long tests, and some trials of the campaign
	# pytest exits with 5 if the sample has no test.
	$(BIN)/python -m pytest -m long --long=sample --sample-seed=$(SAMPLE) --timeout=900 || \
		[ $$? = 5 ]

campaign-sample: build # the same trials of the campaign every time
	PYTHONPATH=tests $(BIN)/python -m campaign --kind all --trials 120 --seed 1

campaign: build ## search for faults: MINUTES, SEED, KIND=networks|files|ops|all
	PYTHONPATH=tests $(BIN)/python -m campaign --kind $(KIND) --minutes $(MINUTES) \
		$(if $(SEED),--seed $(SEED))

test-neon: tools-rust ## the core's tests for AArch64, under qemu
	bash scripts/test-neon.sh

fuzz-sample: tools-rust # fuzz with the same inputs every time
	bash scripts/fuzz.sh sample

fuzz: tools-rust ## fuzz the readers of graphs and files, FUZZ_SECONDS each
	bash scripts/fuzz.sh $(FUZZ_SECONDS)

results: build ## train all quantizers on Fashion-MNIST and CIFAR-10 (a GPU, or days); DATA=folder
	for config in fashion-mnist cifar10-resnet20; do \
		PYTHONPATH=benches $(BIN)/python -m quantizers --config $$config --data $(DATA) \
			--jobs $(JOBS); done
	$(BIN)/python scripts/compact_results.py

bench: bench-kernels bench-networks ## kernels against the CPU's ceiling, networks against peers

bench-kernels: tools-rust # criterion, then a table of all kernels with the int8 ceiling
	cargo bench --package fatnn --bench kernels --bench int8

bench-networks: build # one thread, batch 1; `fatnn bench --help` has more
	$(BIN)/fatnn bench --model resnet18,resnet34,resnet50 --ends float,int8 \
		--results benches/results
	$(BIN)/python scripts/compact_results.py

# ROUNDS=3 is enough to try it.
ROUNDS ?= 25
bench-readme: build ## the README's table: three networks against all peers, one thread, batch 1
	OMP_NUM_THREADS=1 $(BIN)/fatnn bench --model resnet18,resnet50,mobilenet_v2 --ends int8 \
		--rounds $(ROUNDS) --results benches/results
	$(BIN)/python scripts/compact_results.py

# Which networks of the zoo; all by default.
NETWORKS ?= all
bench-zoo: build ## architectures of torchvision and timm next to every other runtime; NETWORKS=a,b
	OMP_NUM_THREADS=1 PYTHONPATH=benches $(BIN)/python -m zoo --networks $(NETWORKS) \
		--results benches/results
	$(BIN)/python scripts/compact_results.py

ladder: build tools-rust ## all precisions on the same layers and networks (hours; resumes)
	mkdir -p $(LADDER)
	@echo "==> counting instructions (needs valgrind)"
	cargo bench --quiet --package fatnn --bench instructions > $(LADDER)/instructions.new
	mv $(LADDER)/instructions.new $(LADDER)/instructions.json
	PYTHONPATH=benches $(BIN)/python -m ladder --out $(LADDER) \
		--instructions $(LADDER)/instructions.json --results benches/results
	$(BIN)/python scripts/compact_results.py

lint: build ## formatting, clippy, ruff, mypy, stubs
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features --quiet -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --features fatnn/cli --quiet
	scripts/check-msrv.sh
	$(BIN)/python scripts/check-allocations.py
	$(BIN)/python scripts/check-columns.py
	$(BIN)/python scripts/compact_results.py --check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest fatnn_rs._core

fmt: build ## format everything
	cargo fmt --all
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: tools-rust ## the core's documentation, in target/doc
	RUSTDOCFLAGS="-D warnings" cargo doc --package fatnn --no-deps

clean: ## remove everything that was built
	rm -rf target $(VENV) demo-output
