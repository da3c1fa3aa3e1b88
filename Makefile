# SPDX-License-Identifier: GPL-2.0-or-later
# What a developer needs, on a Debian 12 or newer or an Ubuntu of that age, from a fresh clone:
#   make demo          the main job with real processes: SeaweedFS, an introducer, a storage node, two clients
#   make test          every test there is; ends with one line of sums
#   make lint ctest sanitize pytest tahoe-suites installs bench    parts of it, and more
#   make crashes       a node is killed a thousand times, at every moment that has a name, and nothing may be lost
#   make oracle        EXAMPLES=n random runs beside Tahoe's disk backend, and of concurrent clients on the same slots
#   make exits         a thousand processes end, and one forks a hundred times, in the middle of TLS transfers
#   make sanitize-python tsan-python valgrind-python dev-python debug-python    the engine's Python tests, watched
#   make services      the client, the demo and Tahoe's suites on seven other S3 servers, where they are installed
#   make systems       make test on a fresh Debian 13, the C tests on what is to be Debian's next; as root, with debootstrap
#   make libcurls      the C tests on six other versions of libcurl and OpenSSL
#   make screenshots   the status page's pictures in docs/images, taken with chromium
#   make bench-compare ours and the alternatives side by side, see benchmarks/README.rst; bench-million: a million shares
#   make clean         removes what these made
# PYTHON is the interpreter that the virtualenv in VENV is made with.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= $(shell nproc 2>/dev/null || echo 1)

BIN = $(VENV)/bin
STAMP = $(VENV)/installed
SOURCES = setup.py pyproject.toml README.rst $(wildcard tahoe_s3*.pth tahoe_s3*.start MANIFEST.in) \
	$(wildcard ext/*/*.c ext/*/*.h tahoe_s3/*.py tahoe_s3/*/*.py tahoe_s3/*.pyi)

CLANG ?= $(firstword $(foreach name,clang clang-19 clang-16 clang-14,$(shell command -v $(name))))
WARN = -std=c11 -Wall -Wextra -Wconversion -Wshadow -Werror

.PHONY: help demo test venv packages lint types cwarn ctest sanitize pytest tahoe-suites installs bench bench-compare bench-million clean
.PHONY: services systems libcurls crashes oracle screenshots exits sanitize-python sanitize-python-quick tsan-python valgrind-python dev-python debug-python
help:
	@sed -n '2,16s/^# //p' Makefile

demo: venv
	$(BIN)/python -m tests.live.demo

test: venv
	$(BIN)/python -m tests.run_all --jobs $(JOBS)

# The C compiler, the libraries' headers, and Python's venv module.
packages:
	@.ci/packages $(PYTHON)

venv: packages $(STAMP)

$(STAMP): $(SOURCES) | packages
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	rm -rf build/lib* build/bdist*
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '.[test]'
	touch $@

lint: venv
	$(BIN)/ruff check .

types: venv
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest --allowlist tests/native/stubtest.txt tahoe_s3._native

# The rooms without Python.h are built by tests/c as well, with every compiler there is; this covers ext/py too.
cwarn: venv
	@set -e; include=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))'); \
	for compiler in gcc $(CLANG); do \
	    for source in ext/*/*.c; do \
	        $$compiler $(WARN) -O2 -c -o /dev/null -Iext -isystem $$include \
	            $$(pkg-config --cflags libcurl openssl libxml-2.0) $$source; \
	    done; \
	    echo "$$compiler: no warning in $$(ls ext/*/*.c | wc -l) files"; \
	done

ctest: packages
	$(MAKE) --no-print-directory -C tests/c check

sanitize: packages
	$(MAKE) --no-print-directory -C tests/c sanitize

pytest: venv
	$(BIN)/pytest

# SEED=N repeats what an earlier run chose.
crashes: venv
	$(BIN)/python -m tests.crash.matrix --runs 1000 --whole 10 --jobs $(JOBS) $(if $(SEED),--seed $(SEED))

# Longer than in `make pytest`: EXAMPLES is the number for the largest test, the others have their share of it. SEED=N
# does an earlier run again.
EXAMPLES ?= 2000
oracle: venv
	ORACLE_EXAMPLES=$(EXAMPLES) ORACLE_SEED=$(SEED) $(BIN)/pytest tests/oracle -s

# SEED=N begins them in the order of an earlier run.
exits: venv
	$(BIN)/python -m tests.native.exits --exits 1000 --forks 100 $(if $(SEED),--seed $(SEED))

# The engine's Python tests with the extension built for a tool; see the script. "quick" is what `make test` runs.
# But for the process that forks: gcc's ASan takes no care of its allocator's locks there, and a child in which the loop
# held one waits for it for ever, now and then.
sanitize-python: venv
	@tests/native/checked.sh asan $(BIN)/python tests/native -k "not forks_leave"

sanitize-python-quick: venv
	@tests/native/checked.sh asan $(BIN)/python tests/native \
	    -k "not botocore and not left_behind and not hundred_processes and not allocation and not forks_leave"

# But for the process that forks: TSan does not support a fork of a process with threads, whose children hang in it.
tsan-python: venv
	@tests/native/checked.sh tsan $(BIN)/python tests/native --timeout 900 -k "not forks_leave"

# A part of them, since it takes fifty times as long; wants valgrind.
valgrind-python: venv
	@tests/native/checked.sh valgrind $(BIN)/python $(addprefix tests/native/test_,engine.py interpreters.py parse.py stub.py)

ENGINE_TESTS = -X dev -W error -m pytest --noconftest -p no:cacheprovider -p no:twisted -q tests/native

dev-python: venv
	$(BIN)/python $(ENGINE_TESTS)

# A Python built with Py_DEBUG: apt-get install python3-dbg. It counts references, so that test_leaks.py sees them too.
DEBUG_PYTHON ?= python3-dbg
debug-python: packages
	test -x $(VENV)-debug/bin/python || $(DEBUG_PYTHON) -m venv $(VENV)-debug
	rm -rf build/lib* build/bdist* build/temp*
	$(VENV)-debug/bin/python -m pip install --quiet --disable-pip-version-check \
	    pytest pytest-timeout hypothesis botocore cryptography
	$(VENV)-debug/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall .
	$(VENV)-debug/bin/python -c 'import sys; sys.gettotalrefcount()'
	$(VENV)-debug/bin/python $(ENGINE_TESTS)

tahoe-suites: venv
	$(BIN)/python -m tests.tahoe.run --jobs $(JOBS) --on disk --on moto --on seaweedfs --on rclone

# On other S3 servers, those of them that are installed; docs/testing.rst says where they come from. ON="garage minio"
services: venv
	$(BIN)/python -m tests.run_services --jobs $(JOBS) $(ON)

# On the gcc, Python and libraries of other Debians. ON="sid='packages ctest'"
systems:
	tests/systems.sh $(ON)

# Those in wheels of pycurl. ON="7.46.0 7.49.0"
libcurls: venv
	PYTHON=$(BIN)/python tests/libcurls.sh $(ON)

installs: venv
	$(BIN)/python -m tests.installs

# The pages of real nodes in a real browser, and what makes pictures small.
screenshots: venv
	@command -v chromium >/dev/null || test "$$(id -u)" = 0 || \
	    { echo "tahoe-s3: as root: apt-get install chromium fonts-dejavu-core"; exit 1; }
	@command -v chromium >/dev/null || { apt-get -qq update && DEBIAN_FRONTEND=noninteractive \
	    apt-get -qq install -y --no-install-recommends chromium fonts-dejavu-core; } >/dev/null
	$(BIN)/python -m pip install --quiet --disable-pip-version-check Pillow
	$(BIN)/python -m tests.live.screenshots docs/images

bench: venv
	$(BIN)/python benchmarks/put_get.py

# A storage server with a million shares, next to Tahoe's disk backend.
bench-million: venv
	$(BIN)/python benchmarks/million.py $(MILLION)

# Ours and the alternatives, in a virtualenv of their own: what they need must not decide what the package is tested with.
# The second pycurl is built against the system's libcurl, which its wheel is not; and the second engine against the
# libraries of that wheel.
BENCH = $(VENV)-bench
BENCH_PIP = $(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check
bench-compare: packages
	test -x $(BENCH)/bin/python || $(PYTHON) -m venv $(BENCH)
	rm -rf build/lib* build/bdist*
	$(BENCH_PIP) .
	$(BENCH_PIP) -r benchmarks/requirements.txt || \
	    for name in $$(grep -v '^#' benchmarks/requirements.txt); do \
	        $(BENCH_PIP) $$name || echo "bench-compare: $$name cannot be installed here"; \
	    done
	test -d $(BENCH)/pycurl-system/pycurl || \
	    $(BENCH_PIP) --no-binary pycurl --no-deps --target $(BENCH)/pycurl-system pycurl || \
	    echo "bench-compare: pycurl cannot be built here"
	rm -rf build/lib* build/bdist* $(BENCH)/newer
	PYTHONPATH=benchmarks $(BENCH)/bin/python -m contest.newer $(BENCH)/newer || \
	    echo "bench-compare: no engine with the libraries of pycurl's wheel"
	rm -rf build/lib* build/bdist*
	BENCH_PYCURL_SYSTEM=$(BENCH)/pycurl-system BENCH_NEWER=$(BENCH)/newer $(BENCH)/bin/python benchmarks/compare.py $(COMPARE)

clean:
	rm -rf $(VENV) $(VENV)-bench $(VENV)-debug build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis _trial_temp*
	find . -name __pycache__ -prune -exec rm -rf {} +
	find tahoe_s3 -name '*.so' -delete
