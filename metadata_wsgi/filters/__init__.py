# SPDX-License-Identifier: Apache-2.0
"""The filters, one file each. The default pipeline, in the order in which a request passes through it:

================== =========================== ===================== ==================================================
filter             reads                       writes                purpose
================== =========================== ===================== ==================================================
catch_errors       -                           -                     503 and a log line for unexpected exceptions
request_id         -                           REQUEST_ID            the id of the request, for log lines and Nova
peer_credentials   -                           -                     accepts only namespace proxies as peers
deadline           -                           DEADLINE              the time until which the response must be sent
header_source      -                           SOURCE,               the address and router or network of the client
                                               CLIENT_IS_PROXY
instance           SOURCE, DEADLINE            INSTANCE              lookup of the instance
signature          SOURCE, INSTANCE            SIGNED_IDENTITY       signs the instance id
upstream (the app) SIGNED_IDENTITY, DEADLINE   -                     sends the request to Nova
================== =========================== ===================== ==================================================

In mode ``one_hop`` the agent listens in the routers' namespaces, and ``socket_source`` replaces ``header_source``.

Optional filters are in ``filters/optional``. They are used only if the paste file names them.
``pipeline/environ_keys.py`` explains each key.
"""
