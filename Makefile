# Two commands for a fresh Debian or Ubuntu machine with git, make and Python 3.11 or later:
#   make lab    builds a cloud on this machine and asks each of its guests who it is
#   make test   passes the tests
# What is missing is installed: system packages by apt-get, everything else into .venv beside this file.

PYTHON ?= python3
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
LAB_PROGRAMS := ip:iproute2 iptables:iptables curl:curl
TEST_PROGRAMS := $(LAB_PROGRAMS) nft:nftables haproxy:haproxy memcached:memcached cloud-init:cloud-init openssl:openssl

.PHONY: lab test clean
.DELETE_ON_ERROR:

lab: .venv/installed
	@$(call need,$(LAB_PROGRAMS))
	@.venv/bin/metadata-wsgi lab $(LAB_OPTIONS)

test: .venv/installed
	@$(call need,$(TEST_PROGRAMS))
	.venv/bin/tox $(TOX_OPTIONS)

.venv/installed: setup.cfg
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed" if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || $(call install,python3-venv)
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --editable . tox
	@touch $@

clean:
	rm -rf .venv .tox build dist *.egg-info

# PROGRAM:PACKAGE words; installs the packages whose program is not on PATH (iptables is in /usr/sbin).
need = missing=; for word in $(1); do \
	PATH=$$PATH:/usr/sbin:/sbin command -v $${word%%:*} >/dev/null || missing="$$missing $${word\#\#*:}"; done; \
	[ -z "$$missing" ] || $(call install,$$missing)
install = { echo "Installing $(1)"; $(SUDO) apt-get update -qq && \
	$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(1) >/dev/null; }
