# SPDX-License-Identifier: Apache-2.0
"""A filter whose load waits, as a slow one does: for tests of what is served meanwhile.

While the file ``hold`` exists its number of loads succeed at once. Further ones write their pid to ``waiting`` and wait
until the file is gone.
"""

import os
import time
from pathlib import Path


def filter_factory(global_conf, directory):
    hold = Path(directory, 'hold')
    if hold.exists():
        free = int(hold.read_text())
        if free:
            hold.write_text(str(free - 1))
        else:
            Path(directory, 'waiting').write_text(str(os.getpid()))
            while hold.exists():
                time.sleep(0.02)
    return lambda app: app
