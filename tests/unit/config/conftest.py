# SPDX-License-Identifier: Apache-2.0
import pytest


@pytest.fixture
def conf_file(tmp_path):
    def write(text, name='agent.ini'):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write
