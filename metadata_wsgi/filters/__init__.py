# SPDX-License-Identifier: Apache-2.0
"""The filters, one file each. The shipped pipeline, from the namespace proxy to Nova:

================== =========================== ===================== ==================================================
filter             reads                       writes                purpose
================== =========================== ===================== ==================================================
catch_errors       -                           -                     503 and a log line for unexpected exceptions
peer_credentials   -                           -                     refuses all peers but namespace proxies
deadline           -                           DEADLINE              until when the response must be sent
header_source      -                           SOURCE,               the address and router or network of the client
                                               CLIENT_IS_PROXY
instance           SOURCE, DEADLINE            INSTANCE              lookup of the instance
signature          SOURCE, INSTANCE            SIGNED_IDENTITY       signs the instance id
upstream (the app) SIGNED_IDENTITY, DEADLINE   -                     sends the request to Nova
================== =========================== ===================== ==================================================

``socket_source`` stands in the place of ``header_source`` where the agent itself listens in the routers' namespaces.

Optional filters are in ``filters/optional`` and off until the paste file names them. ``pipeline/environ_keys.py`` has
the meaning of each key.
"""
