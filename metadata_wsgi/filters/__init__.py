# SPDX-License-Identifier: Apache-2.0
"""The filters, one file each. The shipped pipeline, from the namespace proxy to Nova::

    catch_errors   what nobody foresaw: traceback to the log, a constant sentence to the guest
    peer_credentials   only namespace proxies may speak to us
    deadline       establishes DEADLINE   until when there must be an answer
    source         establishes SOURCE     who is asking, by network position; FORWARDED: is it for somebody else?
    instance       reads SOURCE, DEADLINE; establishes INSTANCE
    signature      reads SOURCE, INSTANCE; establishes SIGNED (the headers Nova authenticates by)

and then the app ``upstream``, which reads SIGNED and DEADLINE. Off until the paste file names them::

    rate_limit     reads SOURCE, INSTANCE    so many boots a minute
    session_token  reads INSTANCE, FORWARDED IMDSv2
    path_policy    reads INSTANCE            hides paths
    healthcheck, metrics, request_log        only watch, right behind catch_errors
    cache          before instance        which instance is where; establishes INSTANCE where it remembers one
    cache_answers  after instance         what Nova told it
"""
