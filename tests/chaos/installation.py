# SPDX-License-Identifier: Apache-2.0
"""An installation of its own, whose version can be replaced while its programs run.

It is a virtual environment with the programs and the package ``metadata_wsgi``. The libraries are those of the Python
that runs the tests. The files are replaced as dpkg replaces them: each is written beside the former one and renamed,
then the files and directories that only the former version had are removed, then the byte code is compiled.
"""

from __future__ import annotations

import configparser
import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
FORMER_VERSION = '1.0.99'
SITE_PACKAGES = Path('lib', f'python{sysconfig.get_python_version()}', 'site-packages')
SOURCES = ('metadata_wsgi', 'bin', 'etc', 'setup.cfg')


@dataclass(frozen=True)
class Release:
    """A version and its files, by their path in the installation."""

    version: str
    files: Mapping[Path, bytes]


class Installation:
    """In ``directory``, which is made, with the release ``former``. ``present`` is what an upgrade installs."""

    def __init__(self, directory: Path, former: Release, present: Release) -> None:
        self.former, self.present = former, present
        self.environ = {'PYTHONPATH': ''}
        """Of its programs: nothing of a checkout is found before its own files."""
        self.bin = directory / 'bin'
        self._directory = directory
        self._files: dict[Path, bytes] = {}
        self.bin.mkdir(parents=True)
        self._python = self.bin / 'python3'
        self._python.symlink_to(getattr(sys, '_base_executable', sys.executable))
        (directory / 'pyvenv.cfg').write_text(f'home = {Path(self._python.readlink()).parent}\n')
        site_packages = directory / SITE_PACKAGES
        site_packages.mkdir(parents=True)
        # Files of this kind in the directory that it names are not read: an editable installation there is not found.
        (site_packages / 'libraries.pth').write_text(sysconfig.get_path('purelib') + '\n')
        self.install(former)

    def install(self, release: Release) -> None:
        """Replace the files that differ; running programs are left alone."""
        for name, content in release.files.items():
            if self._files.get(name) == content:
                continue
            path = self._directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if name.parent == Path('bin'):
                content = re.sub(rb'\A#!.*', b'#!' + os.fsencode(self._python), content)
            unpacked = path.with_name(f'{path.name}.new')
            unpacked.write_bytes(content)
            unpacked.chmod(0o755 if name.parent == Path('bin') else 0o644)
            unpacked.rename(path)
        kept = {parent for name in release.files for parent in name.parents}
        for name in set(self._files) - set(release.files):
            (self._directory / name).unlink(missing_ok=True)
            for parent in name.parents:
                if parent not in kept:
                    shutil.rmtree(self._directory / parent, ignore_errors=True)
        self._files = dict(release.files)
        command = [self._python, '-m', 'compileall', '-q', self._directory / SITE_PACKAGES]
        subprocess.run(command, env={**os.environ, **self.environ}, check=True)


def release_of_checkout(version: str = '') -> Release:
    """This checkout; with another version number if one is given."""
    files = (path for name in SOURCES for path in _files_in(CHECKOUT / name))
    return _release({path.relative_to(CHECKOUT): path.read_bytes() for path in files}, version)


def release_of_revision(revision: str, version: str) -> Release:
    """A commit, tag or branch of this repository, with another version number."""
    archive = subprocess.run(['git', 'archive', revision, *SOURCES], cwd=CHECKOUT, check=True, capture_output=True)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        sources = {Path(member.name): files.extractfile(member).read() for member in files if member.isfile()}  # type: ignore[union-attr]
    return _release(sources, version)


def _files_in(path: Path) -> Iterator[Path]:
    return (one for one in path.rglob('*') if one.is_file() and one.suffix != '.pyc') if path.is_dir() else iter([path])


def _release(sources: Mapping[Path, bytes], version: str) -> Release:
    """What pip makes of the sources, without its records."""
    setup = configparser.ConfigParser(interpolation=None, delimiters=('=',))
    setup.optionxform = str  # type: ignore[assignment,method-assign]
    setup.read_string(sources[Path('setup.cfg')].decode())
    version = version or setup['metadata']['version']
    files = {
        (SITE_PACKAGES / name if name.parts[0] == 'metadata_wsgi' else name): content
        for name, content in sources.items()
        if name.parts[0] in ('metadata_wsgi', 'bin')
    }
    files[Path('etc', 'metadata_wsgi', 'api-paste.ini')] = sources[Path('etc', 'api-paste.ini')]
    points = setup['options.entry_points']
    made_of = SITE_PACKAGES / f'metadata_wsgi-{version}.dist-info'
    files[made_of / 'METADATA'] = f'Metadata-Version: 2.1\nName: metadata_wsgi\nVersion: {version}\n'.encode()
    files[made_of / 'entry_points.txt'] = '\n'.join(f'[{name}]{text}' for name, text in points.items()).encode()
    return Release(version, files)
