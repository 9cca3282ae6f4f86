# SPDX-License-Identifier: Apache-2.0
"""However many filters a pipeline has, its configuration files are parsed once."""

import subprocess
import sys

from tests.cloud import Cloud

COUNT = """
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(args[0]) if event == 'open' and args[0] == sys.argv[1] else None)
from metadata_wsgi.pipeline import paste_loader
paste_loader.load(paste_loader.default_paste_file(), 'agent', {'config_file': sys.argv[1]})
print(len(opened))
"""


def test_loading_a_pipeline_opens_a_configuration_file_once(tmp_path):
    with Cloud(tmp_path) as cloud:
        argv = [sys.executable, '-W', 'ignore', '-c', COUNT, str(cloud.conf_file)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ('1\n', 0), done.stderr
