# SPDX-License-Identifier: Apache-2.0
import errno
import os
import signal
import time

import pytest

from metadata_wsgi import limits
from metadata_wsgi.errors import ConfigError, MetadataError
from metadata_wsgi.server import config_check


def test_a_check_that_returns_is_passed():
    assert config_check.run_in_child(lambda: {'workers': 2}) == {'workers': 2}


def test_the_message_of_a_failed_check_is_that_of_the_child():
    def load():
        raise ConfigError('nova_metadata_port = x: not a number')

    with pytest.raises(MetadataError, match='nova_metadata_port = x: not a number'):
        config_check.run_in_child(load)


def test_a_timeout_ends_a_check_whose_load_hangs(monkeypatch):
    monkeypatch.setattr(limits, 'CONFIG_CHECK_TIMEOUT_S', 0.2)
    with pytest.raises(MetadataError, match='did not load within'):
        config_check.run_in_child(lambda: time.sleep(600))


def test_a_stop_of_the_server_cancels_a_check_whose_load_hangs():
    with pytest.raises(MetadataError, match='the server is stopping'):
        config_check.run_in_child(lambda: time.sleep(600), is_cancelled=lambda: True)


def test_a_check_that_crashes_is_not_passed():
    """As one that the kernel ends for lack of memory."""
    with pytest.raises(MetadataError, match='the check of the configuration ended without a result'):
        config_check.run_in_child(lambda: os.kill(os.getpid(), signal.SIGKILL))


def test_a_failed_check_whose_message_has_a_path_that_is_not_utf_8_is_not_passed():
    def load():
        raise ConfigError('/etc/\udcff.ini: missing')

    with pytest.raises(MetadataError, match=r'/etc/\\udcff.ini: missing'):
        config_check.run_in_child(load)


@pytest.mark.parametrize('function', ['pipe', 'fork'])
def test_a_check_for_which_no_process_can_be_started_is_not_passed(monkeypatch, function):
    def fail():
        raise OSError(errno.EAGAIN, 'Resource temporarily unavailable')

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(MetadataError, match='cannot be checked: Resource temporarily unavailable'):
        config_check.run_in_child(lambda: None)


def test_the_result_is_read_if_the_master_has_reaped_the_child(monkeypatch):
    """The master reaps its workers during a check, and with them every child that has ended."""
    waitpid = os.waitpid

    def reaped(pid, options):
        waitpid(pid, options)
        raise ChildProcessError

    monkeypatch.setattr(os, 'waitpid', reaped)
    assert config_check.run_in_child(lambda: 'x') == 'x'
