# SPDX-License-Identifier: Apache-2.0
"""Example of your own filter: hides the user-data of the instances of some projects.

User-data often has a password for the first boot, and every program in the instance can read it later. This filter
answers 404 to ``user_data`` and ``user-data`` for every instance of the projects in the paste file. It reads the
environ key INSTANCE (``REQUIRES``), so it must stand after ``instance``; elsewhere the pipeline does not start.

In the paste file (an entry point is not needed, the module must be importable)::

    [pipeline:agent]
    pipeline = catch_errors request_id ... instance hide_user_data signature upstream

    [filter:hide_user_data]
    paste.filter_factory = hide_user_data:filter_factory
    projects = 6f70656e737461636b, 7175616e74756d
"""

import webob.exc

from metadata_wsgi.pipeline import environ_keys


class HideUserDataFilter:
    """404 for the user-data of ``projects``; all other requests are passed on."""

    REQUIRES = frozenset({environ_keys.INSTANCE})
    PROVIDES = frozenset()

    def __init__(self, app, *, projects):
        self.app = app
        self._projects = frozenset(projects)

    def __call__(self, environ, start_response):
        """Answer 404, or call the next filter."""
        last = environ['PATH_INFO'].rstrip('/').rpartition('/')[2]
        if last in ('user_data', 'user-data') and environ[environ_keys.INSTANCE].project_id in self._projects:
            return webob.exc.HTTPNotFound()(environ, start_response)
        return self.app(environ, start_response)


def filter_factory(global_conf, projects=''):
    """For ``paste.filter_factory = hide_user_data:filter_factory``."""
    return lambda app: HideUserDataFilter(app, projects=[name.strip() for name in projects.split(',') if name.strip()])
