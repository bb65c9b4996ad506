# Everything a developer does here, one word each. 'make' alone lists them.
# 'make demo' and 'make test' need Python 3.10 or newer and the network once; they set up the rest themselves.

PYTHON ?= python3

# On Linux the default torch brings CUDA along, several gigabytes that nothing here needs. To take a CPU build instead,
# give pip the index that pytorch.org names for it:  make demo TORCH='torch==2.13.0 --index-url URL'
TORCH ?= torch==2.13.0

# Test files that run side by side.
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --quiet --disable-pip-version-check --no-input
INSTALLED := $(VENV)/.installed

DEMO := demo-out
COMPARE := .venv-compare
COMPARED := compare-out
RAY := .venv-ray
RAY_NEEDS := ray[data]==2.60.0
TRITON := .venv-triton
SERVED := triton-out
AGAINST := meta,samexporter,huggingface,pytorch
MEASURED := --scenario click --scenario box --scenario batch8 --scenario batch64
POINT := 737,290
BOX := 79,127,534,624

ATTACK_INPUTS ?= 100000
DEVICE ?= cuda
AMG_FLAGS ?=
TRITON_FLAGS ?=
TRITON_BACKENDS ?=
WHEELS ?=
BROUGHT := .wheels
FLAGS ?=
PROGRAMS := .venv-programs
PROGRAM_PACKAGES := @huggingface/transformers@4.3.2 onnxruntime-web@1.30.0
X_ANYLABELING := x-anylabeling-cvhub==4.2.1
SAM2_ONNX := --ignore-requires-python sam2-onnx==0.3.12
TOOLS := .toolchains
NODE_PACKAGES := onnxruntime-node@1.30.0 onnxruntime-web@1.30.0 sharp@0.35.5
KOTLIN := kotlin-jupyter-kernel==0.19.0.944
GPU_NEEDS := torch numpy PIL rich typer safetensors

# Quiet where a command says enough by itself.
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help demo test long attack lint size browser docs picture bench amg ray triton compare gpu train evaluate clean

help: ## List what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## Export the demo decoders with proof, segment a picture, measure
	@mkdir -p $(DEMO)
	@echo "== SAM 1 form"
	@$(BIN)/samx export --output $(DEMO)/sam1 --force
	@echo "== SAM 2 form"
	@$(BIN)/samx export --family sam2 --output $(DEMO)/sam2 --force
	@echo "== A picture that the demo model was not trained on, a point and a box"
	@$(BIN)/python -m samx.demo.picture $(DEMO)/scene.png
	@$(BIN)/samx segment $(DEMO)/scene.png --model $(DEMO)/sam1 --point $(POINT) --output $(DEMO)/point.png --force
	@$(BIN)/samx segment $(DEMO)/scene.png --model $(DEMO)/sam2 --box $(BOX) --output $(DEMO)/box.png --force
	@echo "== How fast the first is here"
	@$(BIN)/samx bench $(DEMO)/sam1 --quick --output $(DEMO)/bench.json --force
	@$(BIN)/samx report $(DEMO)/bench.json --output $(DEMO)/bench.html --force
	@echo "Look at $(DEMO)/point.png (SAM 1 form), $(DEMO)/box.png (SAM 2 form) and $(DEMO)/bench.html."

test: lint toolchains browser ## Run every check: lint, types, the pages in a browser, tests
	@$(BIN)/pytest -q -n $(JOBS) --dist loadfile

long: $(INSTALLED) toolchains ## Run the tests that 'make test' leaves out for time: whole exports with their gates
	@$(BIN)/pytest -q -m "long and not slow" -n $(JOBS) --dist loadfile

browser: $(INSTALLED) toolchains ## Look at the pages in headless Chromium
	@if ! command -v chromedriver >/dev/null && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		echo "== Installing Chromium, once" && apt-get update -qq >/dev/null && \
		apt-get install -y -qq --no-install-recommends chromium chromium-driver fonts-dejavu-core >/dev/null; fi; \
	if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then \
		echo "== The pages in Chromium" && $(BIN)/pytest -q -m browser; \
	else echo "== NOT RUN: the pages in a browser. As root on Debian: apt-get install chromium chromium-driver"; fi

lint: $(INSTALLED) ## Check style, format, types and the documentation's links
	@echo "== ruff, mypy, and whether the package needs a newer Python than 3.10"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/vermin --quiet --no-tips --violations --target=3.10- samx tools
	@echo "== The documentation's site: every link, every page"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

attack: $(INSTALLED) ## Give every reader many damaged inputs (ATTACK_INPUTS=100000 each; hours)
	@ATTACK_INPUTS=$(ATTACK_INPUTS) $(BIN)/pytest -q -m attack -n $(JOBS) tests/attacks

size: ## Count code lines, files, classes of fields and circles
	@$(PYTHON) -m tools.size

docs: $(INSTALLED) toolchains ## Write the generated pages anew, and build the documentation's site in site/, with the demo page
	@$(BIN)/python docs/cli_reference.py
	@$(BIN)/python docs/api_reference.py
	@$(BIN)/python docs/rooms.py
	@$(BIN)/python docs/zoo_page.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@mkdir -p $(DEMO)
	@$(BIN)/samx export --split --compact --output $(DEMO)/page --force
	@$(BIN)/samx web $(DEMO)/page --output site/demo --runtime $(TOOLS)/node_modules/onnxruntime-web/dist
	@echo "Look at site/index.html and, from a file server, at site/demo/."

.PHONY: clients
clients: $(COMPARE)/.installed $(PROGRAMS)/.installed ## Run our exports in other programs' own classes, beside their own exports (npm, Chromium)
	@mkdir -p $(COMPARED)
	@$(COMPARE)/bin/python -m tools.programs $(PROGRAMS) $(COMPARED)/programs.json

.PHONY: toolchains
toolchains: ## Bring what tests of pages and client code run in: packages of Node.js, a Kotlin compiler
	@if command -v npm >/dev/null; then $(MAKE) $(TOOLS)/.installed; \
	else echo "== NOT RUN: client code in JavaScript and Kotlin, pages with onnxruntime-web. They need npm"; fi

$(TOOLS)/.installed: Makefile | $(INSTALLED)
	@echo "== Bringing packages of Node.js and a Kotlin compiler, once"
	@mkdir -p $(TOOLS)/kotlin
	@cd $(TOOLS) && npm install --ignore-scripts --no-audit --no-fund --silent $(NODE_PACKAGES)
	@$(PIP) download --no-deps --dest $(TOOLS) $(KOTLIN)
	@cd $(TOOLS)/kotlin && $(CURDIR)/$(BIN)/python -m zipfile -e ../kotlin_jupyter_kernel-*.whl .
	@touch $@

.PHONY: wheel
wheel: $(INSTALLED) ## Build dist/samx-VERSION-py3-none-any.whl
	@rm -rf build samx.egg-info
	@$(PIP) wheel --no-deps --no-build-isolation --wheel-dir dist .
	@rm -rf build samx.egg-info
	@ls dist/*.whl

picture: $(INSTALLED) ## Write docs/images/demo.png anew with the demo model
	@mkdir -p $(DEMO)
	@$(BIN)/samx export --output $(DEMO)/sam1 --force
	@$(BIN)/python -m samx.demo.picture $(DEMO)/scene.png
	@$(BIN)/samx segment $(DEMO)/scene.png --model $(DEMO)/sam1 --point $(POINT) --output docs/images/demo.png --force

bench: $(INSTALLED) ## Measure against Meta's own ONNX export, side by side
	@mkdir -p $(COMPARED)
	@$(BIN)/samx export --output $(COMPARED)/one --force
	@$(BIN)/samx export --split --output $(COMPARED)/split --force
	@$(BIN)/samx bench $(COMPARED)/one $(COMPARED)/split --against meta $(MEASURED) --output $(COMPARED)/bench.json --force

amg: $(INSTALLED) ## Find everything in 20 scenes beside Meta's generators, both families (AMG_FLAGS=...; two hours, kept scene by scene)
	@mkdir -p $(COMPARED)
	@PYTHONPATH=.:tests $(BIN)/python -m tools.amg --output $(COMPARED)/automatic.json $(AMG_FLAGS)

ray: $(INSTALLED) ## Run data sets on Ray: 200 pictures, killed actors, speed; Ray comes into an environment of its own (ten minutes)
	@$(BIN)/python -m venv --without-pip $(RAY)
	@$(RAY)/bin/python -c "import site, sys; open(site.getsitepackages()[0] + '/samx.pth', 'w').write( \
		'import site; site.addsitedir(%r)' % sys.argv[1])" "$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')"
	@$(PIP) --python $(RAY)/bin/python install "$(RAY_NEEDS)"
	@$(RAY)/bin/python -m pytest -q -m slow tests/datasets/test_on_ray.py
	@mkdir -p $(COMPARED)
	@$(BIN)/samx export --multimask --image-size 256 --output $(COMPARED)/small --force
	@$(RAY)/bin/python -m tools.dataset $(COMPARED)/small --output $(COMPARED)/dataset.json

triton: $(INSTALLED) $(TRITON)/.installed ## Serve with a real Triton server here, eight users clicking (TRITON_FLAGS=..., TRITON_BACKENDS=FOLDER; Linux, Python 3.10 to 3.12)
	@mkdir -p $(SERVED)
	@$(BIN)/samx export --family sam2 --split --output $(SERVED)/sam2 --force
	@$(BIN)/samx bundle $(SERVED)/sam2 --for triton --output $(SERVED)/models --force
	@PYTHONPATH=. $(TRITON)/bin/python -m tools.triton $(SERVED)/sam2 $(SERVED)/models --output $(SERVED)/triton.json $(TRITON_FLAGS)
	@$(BIN)/samx bundle $(SERVED)/sam2 --for triton --backend onnxruntime --output $(SERVED)/backend --force
	@PYTHONPATH=. $(TRITON)/bin/python -m tools.triton $(SERVED)/sam2 $(SERVED)/backend --output $(SERVED)/backend.json \
		$(if $(TRITON_BACKENDS),--backends $(TRITON_BACKENDS),--stand-in) $(TRITON_FLAGS)
	@PYTHONPATH=. $(TRITON)/bin/python -m tools.triton $(SERVED)/sam2 $(SERVED)/backend --output $(SERVED)/without.json \
		--server=--exit-on-error=false --clicks 2

compare: $(COMPARE)/.installed ## Measure beside samexporter and Hugging Face too, in an environment of its own (half an hour)
	@mkdir -p $(COMPARED)
	@for family in sam1 sam2; do \
		out=$(COMPARED)/$$family; export="$(COMPARE)/bin/samx export --family $$family --force --output $$out"; \
		$$export-one && $$export-many --prompts 16 && $$export-split --split && \
		$$export-openvino --split --target openvino && $$export-openvino-int8 --split --target openvino --int8 && \
		{ $$export-openvino-bf16 --split --target openvino --bf16 || echo "== NOT MEASURED: bfloat16 of OpenVINO"; } && \
		$(COMPARE)/bin/samx bench $$out-one $$(ls -d $$out-[!o]* $$out-openvino*) --against $(AGAINST) $(MEASURED) --output $$out.json --force \
		|| exit 1; \
	done
	@$(COMPARE)/bin/samx report $(COMPARED)/sam1.json $(COMPARED)/sam2.json --output $(COMPARED)/compare.html \
		--markdown $(COMPARED)/compare.md --force

# It takes the Python that it finds, with what a machine for PyTorch has, this checkout, and the wheels of a folder.
gpu: ## Show what a CUDA machine makes of the PyTorch forms, in 8 minutes (DEVICE=cpu, WHEELS=DIR, FLAGS=...)
	@$(PYTHON) -c 'import importlib.util, sys; missing = [name for name in "$(GPU_NEEDS)".split() if not importlib.util.find_spec(name)]; sys.exit(f"{sys.executable} has no {(chr(44) + chr(32)).join(missing)}; name a Python that has it with: make gpu PYTHON=..." if missing else 0)'
	@$(if $(WHEELS),rm -rf $(BROUGHT) && $(PYTHON) -m pip install -qq --no-index --no-deps --target $(BROUGHT) $(WHEELS)/*.whl)
	@PYTHONPATH="$(CURDIR):$(if $(WHEELS),$(CURDIR)/$(BROUGHT):)$$PYTHONPATH" $(PYTHON) -m samx.benchmarks.gpu \
		--device $(DEVICE) $(FLAGS)

train: $(INSTALLED) ## Train the demo model from nothing (two hours or so on two cores)
	@$(BIN)/python -m tools.train_demo.train

evaluate: $(INSTALLED) ## Measure the demo model on scenes it was not trained on
	@$(BIN)/python -m tools.train_demo.evaluate

clean: ## Remove the environment and everything that was made
	rm -rf $(TOOLS) $(PROGRAMS) $(VENV) $(DEMO) $(RAY) $(COMPARE) $(COMPARED) $(TRITON) $(SERVED) $(BROUGHT) build dist site *.egg-info \
		.mypy_cache .pytest_cache .ruff_cache
	find samx tools tests docs -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp, so that installing happens once and again when what is needed changes.
$(INSTALLED): pyproject.toml requirements/dev.txt requirements/upstream.txt | $(BIN)/python
	@echo "== Installing PyTorch ($(TORCH)); this takes a few minutes, once"
	@$(PIP) install $(TORCH)
	@echo "== Installing samx and what its checks need"
	@$(PIP) install --constraint requirements/dev.txt --editable '.[dev]' setuptools wheel
	@SAM2_BUILD_CUDA=0 $(PIP) install --no-deps --no-build-isolation -r requirements/upstream.txt
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(f"samx needs Python 3.10 or newer, found {sys.version.split()[0]}; name one with: make PYTHON=..." if sys.version_info < (3, 10) else 0)'
	@echo "== Making $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV)

# Without what they depend on: their packages ask for PyTorch, for windows and for more that is not run here.
# X-AnyLabeling's modules bear the name of AnyLabeling's, so that it has a folder of its own. sam2-onnx asks for Python
# 3.12, for its module of types alone, which tools/programs/ask.py stands in for.
$(PROGRAMS)/.installed: Makefile requirements/programs.txt
	@echo "== Making $(PROGRAMS)"
	@$(PYTHON) -m venv --clear $(PROGRAMS)
	@$(PROGRAMS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/programs.txt
	@$(PROGRAMS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--target $(PROGRAMS)/x-anylabeling $(X_ANYLABELING)
	@$(PROGRAMS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(SAM2_ONNX)
	@cd $(PROGRAMS) && npm install --ignore-scripts --no-audit --no-fund --silent $(PROGRAM_PACKAGES)
	@touch $@

# Their packages ask for other releases of torch, so that they come without what they depend on.
$(COMPARE)/.installed: pyproject.toml requirements/dev.txt requirements/compare.txt
	@echo "== Making $(COMPARE)"
	@$(PYTHON) -m venv --clear $(COMPARE)
	@$(COMPARE)/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	@$(COMPARE)/bin/python -m pip install --quiet --disable-pip-version-check -c requirements/dev.txt \
		-e '.[bench,openvino,report]' transformers setuptools wheel
	@SAM2_BUILD_CUDA=0 $(COMPARE)/bin/python -m pip install --quiet --disable-pip-version-check \
		--no-deps --no-build-isolation -r requirements/compare.txt
	@$(COMPARE)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(SAM2_ONNX)
	@touch $@

# pytriton needs NumPy below 2, which nothing else here has; every version is named, or pip would take an old pytriton.
$(TRITON)/.installed: requirements/triton.txt
	@echo "== Making $(TRITON)"
	@$(PYTHON) -m venv --clear $(TRITON)
	@$(TRITON)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/triton.txt
	@touch $@
