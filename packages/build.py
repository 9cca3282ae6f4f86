# SPDX-License-Identifier: Apache-2.0
"""Builds the wheel, the sdist, the deb and the rpm into ``dist``. ``tox -e packages`` runs it.

The deb and the rpm contain a virtual environment in /usr/lib/metadata-wsgi with one ``site-packages`` for each version
of Python in ``PYTHONS``. Its interpreter is the distribution's ``/usr/bin/python3``, which looks for the
``site-packages`` of its own version. So one package runs on all of these versions, even after an upgrade of the
distribution. Its installation needs no network and no compiler. Every file belongs to the package.

The libraries are wheels of the versions and hashes in ``requirements.txt``. Times in the packages are those of the
commit (SOURCE_DATE_EPOCH), so deb, rpm and wheel of two builds of one commit are equal byte by byte.
"""

from __future__ import annotations

import argparse
import email
import gzip
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGES = Path(__file__).resolve().parent
CHECKOUT = PACKAGES.parent
NAME = 'metadata-wsgi'
PREFIX = Path('usr/lib') / NAME
PYTHONS = ('3.11', '3.12', '3.13')
"""3.11: Debian 12. 3.12: Ubuntu 24.04, RHEL 10. 3.13: Debian 13, Fedora 41 to 42.

``nfpm.yaml`` requires at least the first of these versions, and less than the next one after the last.
"""
GLIBC = '2_28'
ARCHITECTURES = {'x86_64': 'amd64', 'aarch64': 'arm64'}
"""Name of the machine's architecture -> name in nfpm."""
PROGRAMS = {
    'metadata-wsgi': 'metadata_wsgi.cli.main:main',
    'quantum-metadata-agent': 'metadata_wsgi.cli.agent:main',
    'neutron-metadata-agent-wsgi': 'metadata_wsgi.cli.neutron_agent:main',
    'quantum-ns-metadata-proxy': 'metadata_wsgi.cli.namespace_proxy:main',
}
"""Program on PATH -> its function."""
LIBRARY_PROGRAMS = {'gunicorn': 'gunicorn.app.wsgiapp:run'}
"""Programs that only the virtual environment has; ``metadata-wsgi lab`` starts them."""
LAUNCHER = """#!/usr/lib/metadata-wsgi/bin/python3
import sys

from {module} import {function}

sys.exit({function}())
"""
COMPLETIONS = {
    'bash': 'bash-completion/completions/metadata-wsgi',
    'zsh': 'zsh/vendor-completions/_metadata-wsgi',
}
MANUAL_PREFIX = '/opt/metadata-wsgi'
"""The directory of the programs in the units of ``etc/systemd`` and in ``doc/install.md``."""


def main() -> int:
    """Build what the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0], allow_abbrev=False)
    parser.add_argument('--output', type=Path, default=CHECKOUT / 'dist', help='directory (default: %(default)s)')
    parser.add_argument('--version', help='another version than that of setup.cfg, to test an upgrade')
    parser.add_argument('--machine', choices=sorted(ARCHITECTURES), default=platform.machine())
    args = parser.parse_args()
    work = CHECKOUT / 'build' / 'packages'
    shutil.rmtree(work, ignore_errors=True)
    args.output.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault('SOURCE_DATE_EPOCH', _run('git', 'log', '-1', '--format=%ct').strip())
    # Otherwise the modes of the files in the packages would depend on the user's umask.
    os.umask(0o022)
    step('wheel and sdist')
    wheel = build_wheel(_sources(work / 'sources', args.version), args.output)
    version = wheel.name.split('-')[1]
    root = work / 'root'
    for python in PYTHONS:
        step(f'libraries for Python {python}')
        install_libraries(root / PREFIX / 'lib' / f'python{python}' / 'site-packages', python, args.machine, wheel)
    step('files')
    write_environment(root / PREFIX)
    install_files(root)
    install_generated(root, work)
    write_copyright(root)
    set_times(root)
    for kind in ('deb', 'rpm'):
        step(kind)
        environ = {**os.environ, 'ROOT': str(root), 'VERSION': version, 'ARCH': ARCHITECTURES[args.machine]}
        _run('nfpm', 'package', '--config', PACKAGES / 'nfpm.yaml', '--packager', kind, '--target', args.output,
             env=environ)  # fmt: skip
    for path in sorted(args.output.iterdir()):
        print(f'{path.stat().st_size:>11,} {path.name}')
    return 0


def step(text: str) -> None:
    """Print the name of the step that starts. All steps together take a minute or two."""
    print(f'-- {text}', flush=True)


def build_wheel(sources: Path, output: Path) -> Path:
    """Build wheel and sdist of ``sources``. Returns the wheel."""
    for old in (*output.glob('metadata_wsgi-*.whl'), *output.glob('metadata_wsgi-*.tar.gz')):
        old.unlink()
    _run('uv', 'build', '--quiet', '--out-dir', output, sources)
    (output / '.gitignore').unlink(missing_ok=True)
    (wheel,) = output.glob('metadata_wsgi-*.whl')
    return wheel


def _sources(directory: Path, version: str | None) -> Path:
    """Copy the files that git tracks. If ``version`` is given, it replaces the version in the copy."""
    names = _run('git', 'ls-files', '-z').split('\0')
    for name in filter(None, names):
        if (CHECKOUT / name).is_file():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / name, directory / name)
    if version:
        setup = directory / 'setup.cfg'
        setup.write_text(re.sub(r'(?m)^version = .*$', f'version = {version}', setup.read_text(), count=1))
    return directory


def install_libraries(target: Path, python: str, machine: str, wheel: Path) -> None:
    """Install the wheel and the libraries of ``requirements.txt`` for the version ``python`` into ``target``.

    The libraries are kept in ``build`` for the next call.
    """
    common = [
        *('uv', 'pip', 'install', '--quiet', '--no-deps', '--only-binary', ':all:', '--link-mode', 'copy'),
        *('--python', sys.executable, '--python-version', python, '--python-platform', f'{machine}-manylinux_{GLIBC}'),
    ]
    requirements = PACKAGES / 'requirements.txt'
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:16]
    libraries = CHECKOUT / 'build' / f'libraries-{digest}-{machine}-{python}'
    if not libraries.exists():
        unfinished = libraries.with_name(f'{libraries.name}.unfinished')
        shutil.rmtree(unfinished, ignore_errors=True)
        _run(*common, '--target', unfinished, '--require-hashes', '--requirement', requirements)
        unfinished.rename(libraries)
    shutil.copytree(libraries, target, symlinks=True)
    _run(*common, '--target', target, wheel)
    # Removed: files for the interpreter that ran the installer, and files that differ from build to build.
    for name in ('bin', 'etc', 'libexec', 'share', 'include', '.lock'):
        path = target / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for path in [*target.rglob('__pycache__'), *target.rglob('direct_url.json'), *target.rglob('uv_cache.json')]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for record in target.glob('*.dist-info/RECORD'):
        record.unlink()
    for path in target.rglob('*'):
        if path.is_file():
            path.chmod(0o644)


def write_environment(prefix: Path) -> None:
    """Make ``prefix`` a virtual environment of the distribution's Python, with our programs."""
    (prefix / 'bin').mkdir(parents=True)
    (prefix / 'bin' / 'python3').symlink_to('/usr/bin/python3')
    (prefix / 'pyvenv.cfg').write_text('home = /usr/bin\ninclude-system-site-packages = false\n')
    for program, target in (PROGRAMS | LIBRARY_PROGRAMS).items():
        module, function = target.split(':')
        _write(prefix / 'bin' / program, LAUNCHER.format(module=module, function=function), 0o755)
    _copy(
        CHECKOUT / 'bin' / 'metadata-wsgi-haproxy',
        prefix / 'libexec' / 'metadata_wsgi' / 'metadata-wsgi-haproxy',
        0o755,
    )


def install_files(root: Path) -> None:
    """Copy units, configuration, documentation and examples; link the programs."""
    etc = CHECKOUT / 'etc'
    for program in PROGRAMS:
        link = root / 'usr' / 'bin' / program
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(f'../lib/{NAME}/bin/{program}')
    for unit in sorted((etc / 'systemd').iterdir()):
        text = unit.read_text().replace(f'{MANUAL_PREFIX}/', f'/{PREFIX}/')
        _write(root / 'usr' / 'lib' / 'systemd' / 'system' / unit.name, text)
    for kind in ('sysusers.d', 'tmpfiles.d'):
        for path in sorted((etc / kind).iterdir()):
            _copy(path, root / 'usr' / 'lib' / kind / path.name)
    _copy(etc / 'logrotate.d' / NAME, root / 'etc' / 'logrotate.d' / NAME)
    _copy(etc / 'api-paste.ini', root / 'etc' / 'metadata_wsgi' / 'api-paste.ini')
    doc = root / 'usr' / 'share' / 'doc' / NAME
    for name in ('README.md', 'CHANGELOG.md'):
        _copy(CHECKOUT / name, doc / name)
    for source in (etc, CHECKOUT / 'examples'):
        for path in sorted(source.rglob('*')):
            if (
                path.is_file()
                and '__pycache__' not in path.parts
                and path.parent.name not in ('systemd', 'logrotate.d')
            ):
                _copy(path, doc / 'examples' / path.relative_to(source))


def install_generated(root: Path, work: Path) -> None:
    """Man pages and completions, which the programs themselves write."""
    pages = work / 'man'
    python = (sys.executable, '-W', 'ignore')
    _run(*python, 'doc/man_pages.py', pages)
    for page in sorted(pages.iterdir()):
        target = root / 'usr' / 'share' / 'man' / f'man{page.suffix[1:]}' / f'{page.name}.gz'
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(gzip.compress(page.read_bytes(), mtime=0))
    for shell, path in COMPLETIONS.items():
        _write(root / 'usr' / 'share' / path, _run(*python, 'bin/metadata-wsgi', 'completion', shell))


def write_copyright(root: Path) -> None:
    """The licence of this package, and name, version and licence of each library in it."""
    lines = [
        f'{NAME} is under the Apache License 2.0: /usr/share/common-licenses/Apache-2.0, or LICENSE of the sources.',
        '',
        f'/{PREFIX} contains these libraries. Their licence texts are beside their files, in *.dist-info.',
        '',
    ]
    found: dict[str, str] = {}
    for path in root.glob(f'{PREFIX}/lib/*/site-packages/*.dist-info/METADATA'):
        fields = email.message_from_string(path.read_text(encoding='utf-8'))
        licence = fields['License-Expression'] or _classified(fields.get_all('Classifier', [])) or fields['License']
        found[f'{fields["Name"]} {fields["Version"]}'] = ' '.join((licence or 'see its files').split())[:80]
    lines += [f'{name}: {licence}' for name, licence in sorted(found.items(), key=lambda one: one[0].lower())]
    _write(root / 'usr' / 'share' / 'doc' / NAME / 'copyright', '\n'.join([*lines, '']))


def _classified(classifiers: list[str]) -> str:
    prefix = 'License :: OSI Approved :: '
    return ', '.join(one.removeprefix(prefix) for one in classifiers if one.startswith(prefix))


def set_times(root: Path) -> None:
    """Give every file the time of the commit."""
    seconds = int(os.environ['SOURCE_DATE_EPOCH'])
    for path in [root, *root.rglob('*')]:
        os.utime(path, (seconds, seconds), follow_symlinks=False)


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def _copy(source: Path, target: Path, mode: int = 0o644) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(mode)


def _run(*argv: object, env: dict[str, str] | None = None) -> str:
    """Run a program in the checkout and return its output. If it fails, this program ends."""
    words = [str(word) for word in argv]
    done = subprocess.run(words, cwd=CHECKOUT, env=env, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f'{" ".join(words)} failed with exit code {done.returncode}')
    return done.stdout


if __name__ == '__main__':
    sys.exit(main())
