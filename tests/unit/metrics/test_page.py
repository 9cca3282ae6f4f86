# SPDX-License-Identifier: Apache-2.0
import webtest

from metadata_wsgi.metrics.page import MetricsPage


def test_the_metrics_page_has_one_path():
    app = webtest.TestApp(MetricsPage(lambda: b'a 1.0\n'))
    response = app.get('/metrics')
    assert (response.text, response.content_type) == ('a 1.0\n', 'text/plain')
    app.get('/', status=404)
    app.post('/metrics', status=405)


def test_metrics_that_cannot_be_read_are_a_503(caplog):
    def page():
        raise FileNotFoundError('no directory')

    webtest.TestApp(MetricsPage(page)).get('/metrics', status=503)
    assert 'The metrics cannot be read: no directory' in caplog.text
