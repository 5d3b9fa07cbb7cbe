# Every command a person needs. Each does its own set-up first; `make help` lists them. PYTHON
# chooses the interpreter that .venv is made with; PIP_ARGS is passed to pip (a mirror, --no-index,
# ...).

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help tools tools-rust setup build demo test test-rust test-isa test-python test-long test-sample campaign-sample \
	campaign test-neon fuzz fuzz-sample results bench bench-kernels bench-networks bench-readme bench-zoo ladder lint fmt \
	docs clean

PYTHON ?= python3
PIP_ARGS ?=
# Where data sets are, or are put, and how many runs train at a time.
DATA ?= $(if $(FATNN_DATA),$(FATNN_DATA),data)
JOBS ?= 1
# Where a ladder keeps what it measured.
LADDER ?= runs/ladder
# What a campaign looks for, for how long, and the seed of its first trial (random where it is
# empty).
KIND ?= all
# How long each target is fuzzed.
FUZZ_SECONDS ?= 10
MINUTES ?= 5
SEED ?=
# Chooses which of the long tests a sample has.
SAMPLE ?= $(shell git rev-list --count HEAD 2>/dev/null || echo 0)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

tools: # say plainly what is absent on this machine, and how to get it
	@PYTHON=$(PYTHON) bash scripts/check-tools.sh

tools-rust: # the same for what needs no Python
	@PYTHON= bash scripts/check-tools.sh

$(READY): pyproject.toml | tools
	@echo "==> making $(VENV): PyTorch and the rest (a few minutes the first time)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python scripts/dev_requirements.py > $(VENV)/requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -r $(VENV)/requirements.txt
	touch $@

build: $(READY) # compile the extension module into .venv
	@echo "==> building the Rust core"
	VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/maturin develop --release --quiet

setup: build ## make .venv with everything in it
	@$(BIN)/fatnn info

demo: build ## train, convert, verify and run a ternary network on real data; prints a table
	$(BIN)/fatnn demo

test: test-rust test-isa test-python ## every kind of test

# With the command line's feature, so that the crate is compiled once.
CARGO_TEST := cargo test --package fatnn --features cli --quiet
# Tests whose answer a kernel computes, or a loop that is chosen by the CPU.
ISA_TESTS := conv depthwise int8 network pool quantize residual shortcut

test-rust: tools-rust
	@echo "==> tests of the core"
	$(CARGO_TEST)

test-isa: tools-rust # kernels again, capped tier by tier
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

test-sample: build campaign-sample # one in four of the long tests, by SAMPLE, and some trials of the campaign
	$(BIN)/python -m pytest -m long --long=sample --sample-seed=$(SAMPLE) --timeout=900 || [ $$? = 5 ] # 5: no test is in it

campaign-sample: build # some trials of the campaign, always the same
	PYTHONPATH=tests $(BIN)/python -m campaign --kind all --trials 120 --seed 1

campaign: build ## search for faults: MINUTES, SEED, KIND=networks|files|ops|all
	PYTHONPATH=tests $(BIN)/python -m campaign --kind $(KIND) --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

test-neon: tools-rust ## the core's tests for AArch64, under qemu
	bash scripts/test-neon.sh

fuzz-sample: tools-rust # always the same inputs
	bash scripts/fuzz.sh sample

fuzz: tools-rust ## fuzz reading of graphs and files, FUZZ_SECONDS each
	bash scripts/fuzz.sh $(FUZZ_SECONDS)

results: build ## train the quantizers side by side on Fashion-MNIST and CIFAR-10 (a GPU, or days); DATA=folder
	PYTHONPATH=benches $(BIN)/python -m quantizers --config fashion-mnist --data $(DATA) --jobs $(JOBS)
	PYTHONPATH=benches $(BIN)/python -m quantizers --config cifar10-resnet20 --data $(DATA) --jobs $(JOBS)
	$(BIN)/python scripts/compact_results.py

bench: bench-kernels bench-networks ## kernels against this machine's ceilings, networks against other runtimes

bench-kernels: tools-rust # criterion, then a table in which every kernel is measured with the int8 ceiling
	cargo bench --package fatnn --bench kernels --bench int8

bench-networks: build # one thread, batch 1; `fatnn bench --help` has more
	$(BIN)/fatnn bench --model resnet18,resnet34,resnet50 --ends float,int8 --results benches/results
	$(BIN)/python scripts/compact_results.py

# What the README's table shows; ROUNDS=3 to try it.
ROUNDS ?= 25
bench-readme: build ## the README's table: three networks, int8 ends, one thread, batch 1, beside every other runtime
	OMP_NUM_THREADS=1 $(BIN)/fatnn bench --model resnet18,resnet50,mobilenet_v2 --ends int8 --rounds $(ROUNDS) \
		--results benches/results
	$(BIN)/python scripts/compact_results.py

# Which networks of the zoo; all by default.
NETWORKS ?= all
bench-zoo: build ## architectures of torchvision and timm next to every other runtime; NETWORKS=a,b
	OMP_NUM_THREADS=1 PYTHONPATH=benches $(BIN)/python -m zoo --networks $(NETWORKS) \
		--results benches/results
	$(BIN)/python scripts/compact_results.py

ladder: build tools-rust ## every precision on the same layers and networks, beside other runtimes (hours); goes on where it stopped
	mkdir -p $(LADDER)
	@echo "==> counting instructions (needs valgrind)"
	cargo bench --quiet --package fatnn --bench instructions > $(LADDER)/instructions.new
	mv $(LADDER)/instructions.new $(LADDER)/instructions.json
	PYTHONPATH=benches $(BIN)/python -m ladder --out $(LADDER) --instructions $(LADDER)/instructions.json --results benches/results
	$(BIN)/python scripts/compact_results.py

lint: build ## formatting, clippy, ruff, mypy, stubs
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features --quiet -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --features fatnn/cli --quiet
	$(BIN)/python scripts/check-allocations.py
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
