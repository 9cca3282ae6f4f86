# SPDX-License-Identifier: Apache-2.0
"""Creates Neutron's tables in the database URL of the first argument. Runs in Neutron's virtual environment."""

import sys

import sqlalchemy
from neutron.db.migration.models import head

head.get_metadata().create_all(sqlalchemy.create_engine(sys.argv[1]))
