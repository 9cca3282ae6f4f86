# Two commands for a fresh Debian or Ubuntu machine with git, make and Python 3.11 or later:
#   make lab    makes a small cloud in network namespaces and reads the metadata in each of its guests
#   make test   runs all tests
# Missing programs are installed: system packages with apt-get, everything else into .venv beside this file.

PYTHON ?= python3
# Two environments at a time: the tests with a real OpenStack mostly wait. The output of each appears when it has ended.
TOX_OPTIONS ?= --parallel 2
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
# PROGRAM:PACKAGE; a program with a slash is a file.
LAB_PROGRAMS := ip:iproute2 iptables:iptables curl:curl
TEST_PROGRAMS := $(LAB_PROGRAMS) nft:nftables sysctl:procps haproxy:haproxy memcached:memcached \
	redis-server:redis-server strace:strace netstat:net-tools cloud-init:cloud-init openssl:openssl faketime:faketime \
	keepalived:keepalived dnsmasq:dnsmasq-base groff:groff-base zsh:zsh \
	/lib/systemd/systemd:systemd /usr/include/asm-generic/unistd.h:linux-libc-dev

.PHONY: lab test clean
.DELETE_ON_ERROR:

lab: .venv/installed
	@$(call need,$(LAB_PROGRAMS))
	@.venv/bin/metadata-wsgi lab $(LAB_OPTIONS)

test: .venv/installed .venv/prometheus/usr/bin/promtool
	@$(call need,$(TEST_PROGRAMS))
	PATH=$(CURDIR)/.venv/prometheus/usr/bin:$$PATH .venv/bin/tox $(TOX_OPTIONS)

# Unpacked, not installed (19 MB): the package would start a Prometheus on every address of this machine.
.venv/prometheus/usr/bin/promtool: | .venv/installed
	@mkdir -p .venv/prometheus
	@cd .venv/prometheus && { apt-get download -qq prometheus 2>/dev/null || \
	{ $(SUDO) apt-get update -qq && apt-get download -qq prometheus 2>/dev/null; } } && \
	dpkg-deb -x prometheus_*.deb . && rm prometheus_*.deb

.venv/installed: setup.cfg
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed" if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || $(call install,python3-venv)
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --editable . tox
	@touch $@

clean:
	rm -rf .venv .tox build dist *.egg-info

# Installs the packages of the missing programs. PATH of a user may lack /usr/sbin, where iptables is.
need = missing=; for word in $(1); do [ -e "$${word%%:*}" ] || \
	PATH=$$PATH:/usr/sbin:/sbin command -v $${word%%:*} >/dev/null || missing="$$missing $${word\#\#*:}"; done; \
	[ -z "$$missing" ] || $(call install,$$missing)
install = { echo "Installing $(1)"; $(SUDO) apt-get update -qq && \
	$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(1) >/dev/null; }
