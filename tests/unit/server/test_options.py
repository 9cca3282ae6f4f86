# SPDX-License-Identifier: Apache-2.0
from oslo_config import cfg

from metadata_wsgi.server import options


def test_zero_workers_are_the_default_and_logged_once(caplog):
    caplog.set_level('INFO')
    options._log_zero_workers.cache_clear()
    conf = cfg.ConfigOpts()
    conf.register_opts(options.OPTS)
    conf(['--config-file', '/dev/null'], project='test')
    conf.set_override('metadata_workers', 0)
    assert [options.worker_count(number) for number in (conf.metadata_workers, 0, None, 3)] == [
        *[options.default_workers()] * 3, 3
    ]  # fmt: skip
    assert [record.getMessage() for record in caplog.records] == [
        f'metadata_workers = 0 means the default here: {options.default_workers()}'
    ]
