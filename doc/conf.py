# SPDX-License-Identifier: Apache-2.0
"""Sphinx's configuration: the pages are Markdown (MyST); those of ``reference/`` are generated from the code."""

import os
import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import reference_pages

# The width of the programs' --help pages.
os.environ['COLUMNS'] = '88'

project = 'metadata_wsgi'
project_copyright = 'the authors of metadata_wsgi'
release = version = version_of('metadata_wsgi')

extensions = ['myst_parser']
exclude_patterns = ['_build']
source_suffix = {'.md': 'markdown'}
# Links such as caches.md#how-long are checked.
myst_heading_anchors = 4

# Options such as --mode stay as they are typed.
smartquotes = False

html_theme = 'furo'
html_title = 'metadata_wsgi'
html_static_path = ['_static']
html_css_files = ['tables.css']
html_copy_source = False
html_show_sourcelink = False


def setup(app):
    """Write the generated pages before Sphinx looks for its sources."""
    app.connect('config-inited', lambda app, config: reference_pages.write(Path(app.srcdir) / 'reference'))
