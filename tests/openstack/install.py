# SPDX-License-Identifier: Apache-2.0
"""Installs Keystone, Neutron and Nova into a virtual environment that later runs use again."""

from __future__ import annotations

import shutil
import subprocess
import venv
from pathlib import Path

PINS = Path(__file__).with_name('pins.txt')
PROGRAMS = ('keystone', 'neutron', 'nova', 'gunicorn')
"""Installed, with their dependencies, at the versions in PINS."""


def install(directory: Path) -> Path:
    """The virtual environment in ``directory``; made if it is missing or has other versions."""
    environment, installed = directory / 'venv', directory / 'installed.txt'
    pins = PINS.read_text()
    if installed.exists() and installed.read_text() == pins and (environment / 'bin' / 'gunicorn').exists():
        return environment
    installed.unlink(missing_ok=True)
    if environment.is_dir() and not environment.is_symlink():
        shutil.rmtree(environment)
    directory.mkdir(parents=True, exist_ok=True)
    venv.create(environment, with_pip=True)
    pip = [environment / 'bin' / 'python', '-m', 'pip', '--disable-pip-version-check']
    with (directory / 'install.log').open('wb') as log:
        done = subprocess.run([*pip, 'install', *PROGRAMS, '--constraint', PINS], stdout=log, stderr=log)
    if done.returncode:
        raise RuntimeError(f'pip could not install {", ".join(PROGRAMS)}: {log_end(directory / "install.log")}')
    installed.write_text(pins)
    return environment


def log_end(path: Path, characters: int = 2000) -> str:
    """The path of a log file and its last ``characters``."""
    return f'{path}:\n{path.read_text(errors="replace")[-characters:]}' if path.exists() else f'{path} is not there'
