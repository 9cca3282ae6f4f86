# SPDX-License-Identifier: Apache-2.0
"""A lab without root: where it is impossible, and the pid file of one that was left up."""

import os
import subprocess

import pytest

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.lab import unprivileged


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """The only directory of programs; a function that writes one."""
    monkeypatch.setenv('PATH', str(tmp_path))

    def write(name, script):
        (tmp_path / name).write_text(f'#!/bin/sh\n{script}\n')
        (tmp_path / name).chmod(0o755)

    return write


@pytest.fixture(autouse=True)
def runtime(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_RUNTIME_DIR', str(tmp_path / 'runtime'))
    return tmp_path / 'runtime'


def test_missing_unshare_names_the_package(programs):
    with pytest.raises(NetnsError, match=r'needs root, or the program unshare \(package util-linux\)'):
        unprivileged.run(['lab'], keep=False)


def test_forbidden_user_namespaces_name_the_sysctl(programs):
    programs('unshare', 'echo "unshare failed: not permitted" >&2; exit 1')
    with pytest.raises(NetnsError, match=r'not allowed \(unshare failed: not permitted\); run it with sudo, or let'):
        unprivileged.run(['lab'], keep=False)


def test_runtime_directory_with_shell_characters_is_not_interpreted(programs, tmp_path, monkeypatch):
    directory = tmp_path / 'a b; touch injected; $(touch injected)'
    monkeypatch.setenv('XDG_RUNTIME_DIR', str(directory))
    for program in ('mount', 'sleep'):
        programs(program, 'exit 0')
    shell, *words = unprivileged.shell_command(['echo', 'up'], keep=True)
    done = subprocess.run([f'/bin/{shell}', *words], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == 'up\n'
    assert [file.name for file in directory.iterdir()] == ['metadata_wsgi-lab.pid.ready']
    assert not (tmp_path / 'injected').exists()


def test_no_lab_is_up():
    assert unprivileged.kept_pid() is None
    assert unprivileged.down() is False


@pytest.mark.parametrize(
    'text', ['', 'no number\n', '999999999\n', f'{os.getpid()}\n'], ids=['empty', 'no number', 'no process', 'own pid']
)
def test_stale_pid_file_kills_nothing(runtime, text):
    """The number may be another process's by now: this one's, in the last case."""
    runtime.mkdir(0o700)
    (runtime / 'metadata_wsgi-lab.pid').write_text(text)
    assert unprivileged.down() is False


def test_runtime_directory_is_created_with_mode_0700(runtime):
    unprivileged.kept_pid()
    assert runtime.stat().st_mode & 0o777 == 0o700
