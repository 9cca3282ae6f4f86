# SPDX-License-Identifier: Apache-2.0
"""The HTTP server of the agent and the namespace proxy: gunicorn's master and worker, with our connection handling.

The server uses these undocumented interfaces of libraries. A new version may change them, so setup.cfg excludes the
next major version of each library:

- gunicorn: ``Arbiter.manage_workers``, ``.reload``, ``.num_workers``, ``.spawn_worker``, ``.kill_worker``, ``.setup``,
  ``.worker_age``, ``.WORKERS``, ``.LISTENERS``, ``.signal``, ``.handle_usr1``, ``.handle_usr2``, ``.stop``,
  ``.systemd``;
  ``Worker.tmp``, ``.age``, ``.init_signals``, ``.sockets``, ``.alive``, ``.handle_exit``; ``Message.parse``,
  ``.set_body_reader``, ``.max_buffer_headers``, ``._expected_100_continue``; ``Body.reader`` (``.parser``,
  ``.length``), ``.failed``; ``SocketUnreader.chunk``, ``.take_buffered``; ``http.parser.RequestParser``;
  ``http.wsgi.FileWrapper``, ``.WSGIErrorsWrapper``; ``Response.cfg`` (``pipeline.gunicorn_strictness``).
- gunicorn_h1c, which is optional: ``http.head_parser``.
- gevent: the attribute ``_sock`` of its sockets; the modules ``gevent._threading`` and ``gevent.resolver._addresses``,
  which ``preload.PRELOAD_MODULES`` names.
- CPython: ``_socket.socket._accept``.
"""
