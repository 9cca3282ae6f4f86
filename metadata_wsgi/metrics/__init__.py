# SPDX-License-Identifier: Apache-2.0
"""Publishes the instruments (``metadata_wsgi.instruments``) for Prometheus.

Each worker writes its counts into files of its own (prometheus-client's multiprocess mode). A page adds the counts up.

``options``   the section ``[metrics]``
``sink``      connects the instruments of this process to its files
``files``     the directory of the files, and the counts of processes that have ended
``page``      the page with the sums, and the server for it inside a worker
"""
