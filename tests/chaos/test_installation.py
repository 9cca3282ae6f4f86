# SPDX-License-Identifier: Apache-2.0
"""The upgrade in the chaos tests replaces all files; none of the former version stays."""

import os
import subprocess
from dataclasses import replace

from tests.chaos.installation import CHECKOUT, FORMER_VERSION, SITE_PACKAGES, Installation, release_of_checkout


def version(installation):
    command = [installation.bin / 'metadata-wsgi', '--version']
    environ = {**os.environ, 'PYTHONPATH': str(CHECKOUT), **installation.environ}
    done = subprocess.run(command, cwd='/', env=environ, check=True, capture_output=True, text=True, timeout=60)
    return done.stdout.split()[-1]


def test_upgrade_and_downgrade_replace_every_file(tmp_path):
    only_in_former = SITE_PACKAGES / 'metadata_wsgi' / 'only_in_former.py'
    former, present = release_of_checkout(FORMER_VERSION), release_of_checkout()
    changed = SITE_PACKAGES / 'metadata_wsgi' / 'limits.py'
    former = replace(former, files={**former.files, only_in_former: b'', changed: former.files[changed] + b'# former'})
    installation = Installation(tmp_path / 'installation', former, present)
    assert version(installation) == FORMER_VERSION
    assert (tmp_path / 'installation' / only_in_former).exists()
    installation.install(present)
    assert version(installation) == present.version != FORMER_VERSION
    files = {path.relative_to(tmp_path / 'installation') for path in (tmp_path / 'installation').rglob('*')}
    assert set(present.files) <= files
    assert (tmp_path / 'installation' / changed).read_bytes() == present.files[changed]
    assert only_in_former not in files
    assert not [path for path in files if path.suffix == '.new' or FORMER_VERSION in path.name]
    installation.install(former)
    assert version(installation) == FORMER_VERSION
    assert (tmp_path / 'installation' / changed).read_bytes() == former.files[changed]
