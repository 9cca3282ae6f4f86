# SPDX-License-Identifier: Apache-2.0
from tests.open_tmp_path import tmp_path_factory

__all__ = ['tmp_path_factory']
