# SPDX-License-Identifier: MIT
#
# The way in for people and for CI: each target calls one command, which finds what is done already.

PYTHON ?= python3
VENV ?= .venv
# YES=1 lets the set-up use sudo without asking.
SETUP_FLAGS = --venv $(VENV) $(if $(YES),--yes)

.PHONY: help setup packages demo check check-docs check-js check-arm64 check-series check-parents check-aws check-kvm bench soak fuzz coverage dist dist-check clean

help:
	@echo 'make demo    set up, build, and run a hello enclave'
	@echo 'make setup   the virtual environment alone'
	@echo 'make check   build what the tests need, run every test and linter'
	@echo 'make check-docs  all command blocks of README and docs, as they are written, with their guests'
	@echo 'make check-arm64  everything of arm64 enclaves, emulated, in a QEMU that is built and in the distribution'"'"'s'
	@echo 'make check-series SERIES=10.2  qtests and boot checks in a QEMU of that series (its source may be gone from Debian)'
	@echo 'make check-aws BLOBS=DIR  the boot tests with AWS'"'"'s own kernel and init (its folder, or its RPM)'
	@echo 'make check-kvm [TESTS="..."]  enclaves under KVM and on the kernel'"'"'s own vsock; emulates a host that has them'
	@echo 'make check-js  the local KMS with AWS'"'"'s SDK for JavaScript (needs Node.js)'
	@echo 'make check-parents  the parent programs of docs/parent in Go and Rust (needs both)'
	@echo 'make bench   what a start costs, how fast EIFs are loaded, the NSM and KMS answer, vsock carries'
	@echo 'make soak    the vsock backend for ten minutes, clocks for five, fifty enclaves in turns for twenty, 10^5 documents,'
	@echo '             10^6 connections, all of check-kvm, then fuzz the C cores (SECONDS=N for each)'
	@echo 'make coverage  which lines no test reaches, in HTML'
	@echo 'make fuzz [TIME=600]  all that reads hostile bytes, on all CPUs, and its figures (needs clang, and atheris for Python)'
	@echo 'make dist    the wheels, and the source of all that is in them, in dist/ (on Debian 12); ARM64=1 also nitroctl-arm64'
	@echo 'make dist-check  install these in fresh systems, without rights and network (as root)'
	@echo 'make clean   remove the virtual environment; `nitroctl cache clean` removes what was built'

packages:
	@$(PYTHON) tools/setup packages $(SETUP_FLAGS)

setup:
	@$(PYTHON) tools/setup venv $(SETUP_FLAGS)
	@echo 'activate it with: . $(VENV)/bin/activate'

demo:
	@$(PYTHON) tools/setup demo $(SETUP_FLAGS)
	@$(VENV)/bin/python -m nitroctl demo

check: packages
	@$(PYTHON) tools/setup venv $(SETUP_FLAGS)
	@$(VENV)/bin/python tools/check

check-docs: packages
	@$(PYTHON) tools/setup venv $(SETUP_FLAGS)
	@$(VENV)/bin/python -m nitroctl build
	@$(VENV)/bin/python tools/check guests docs

check-arm64: packages
	@$(PYTHON) tools/setup venv $(SETUP_FLAGS)
	@$(VENV)/bin/python tools/check all-arm64

check-series: packages
	@test -n "$(SERIES)" || { echo "make check-series SERIES=10.2"; exit 2; }
	@$(PYTHON) tools/setup venv $(SETUP_FLAGS)
	@$(VENV)/bin/python tools/check guests series-$(SERIES)

check-aws: packages
	@test -n "$(BLOBS)" || { echo "make check-aws BLOBS=/usr/share/nitro_enclaves/blobs, or an RPM"; exit 2; }
	@$(PYTHON) tools/setup venv $(SETUP_FLAGS)
	@$(VENV)/bin/python -m nitroctl build
	@$(VENV)/bin/python -m nitroctl guest init
	@$(VENV)/bin/python -m nitroctl guest tools
	@$(VENV)/bin/python -m nitroctl guest kernel --prebuilt
	@$(VENV)/bin/python tools/check --blobs "$(BLOBS)"

check-kvm: packages
	@$(PYTHON) tools/setup venv $(SETUP_FLAGS)
	@$(VENV)/bin/python -m nitroctl build
	@$(VENV)/bin/python -m nitroctl guest init
	@$(VENV)/bin/python -m nitroctl guest kernel --prebuilt
	@$(VENV)/bin/python -m nitroctl guest kernel
	@$(VENV)/bin/python tools/check-kvm $(TESTS)

# Parent programs in Go and Rust; needs their compilers.
check-parents:
	@$(PYTHON) tools/setup venv $(SETUP_FLAGS)
	@CHECK_PARENTS=1 $(VENV)/bin/python -m pytest -q tests/python/vsock/test_static_parents.py

# AWS's SDK for JavaScript as a client of the local KMS; needs Node.js and npm.
check-js:
	@$(PYTHON) tools/setup venv $(SETUP_FLAGS)
	@npm install --silent --no-fund --no-audit --prefix $(VENV)/js @aws-sdk/client-kms
	@$(VENV)/bin/python tests/js/kms.py $(VENV)/js

bench: packages
	@$(PYTHON) tools/setup venv $(SETUP_FLAGS)
	@$(VENV)/bin/python -m nitroctl build
	@$(VENV)/bin/python -m nitroctl guest kernel
	@$(VENV)/bin/python tests/bench/start.py
	@$(VENV)/bin/python tests/bench/load.py
	@$(VENV)/bin/python tests/bench/eif.py
	@$(VENV)/bin/python tests/bench/nsm.py
	@$(VENV)/bin/python tests/bench/vsock.py
	@$(VENV)/bin/python tests/bench/install.py
	@$(VENV)/bin/python tests/bench/kms.py
# Where the distribution's QEMU takes a plugin.
	@$(VENV)/bin/python -m nitroctl build --plugin --arch aarch64
	@$(VENV)/bin/python -m nitroctl guest init --arch aarch64
	@$(VENV)/bin/python -m nitroctl guest kernel --prebuilt --arch aarch64
	@$(VENV)/bin/python tests/bench/arm64.py

soak: packages
	@$(PYTHON) tools/setup venv $(SETUP_FLAGS)
	@$(VENV)/bin/python -m nitroctl build
	@$(VENV)/bin/python -m nitroctl guest kernel
	@$(VENV)/bin/python tools/soak $(if $(SECONDS),--seconds $(SECONDS))

# CPU seconds for all targets together: 600, or TIME.
fuzz: packages
	@$(PYTHON) tools/setup venv $(SETUP_FLAGS)
	@$(VENV)/bin/pip install -q 'atheris>=2.3' || echo 'no atheris for this Python: the C targets alone'
	@$(VENV)/bin/python tools/fuzz $(if $(TIME),--seconds $(TIME))

coverage: packages
	@$(PYTHON) tools/setup venv $(SETUP_FLAGS)
	@$(VENV)/bin/pip install -q 'gcovr>=8' 'coverage>=7.10'
	@$(VENV)/bin/python tools/coverage

dist: packages
	@$(PYTHON) tools/setup venv $(SETUP_FLAGS)
	@$(VENV)/bin/python tools/dist $(if $(ARM64),--arm64)

dist-check: packages
	@$(PYTHON) tools/setup venv $(SETUP_FLAGS)
	@$(VENV)/bin/python tools/dist-check

clean:
	rm -rf $(VENV)

# One step after the other, also under make -j.
.NOTPARALLEL:
