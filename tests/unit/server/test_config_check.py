# SPDX-License-Identifier: Apache-2.0
import time

import pytest

from metadata_wsgi import limits
from metadata_wsgi.errors import ConfigError, MetadataError
from metadata_wsgi.server import config_check


def test_a_check_that_returns_is_passed():
    config_check.run_in_child(lambda: None)


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
