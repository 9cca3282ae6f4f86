# SPDX-License-Identifier: Apache-2.0
"""Make Neutron's tables in the database that the first argument names. Run by Neutron's own Python."""

import sys

import sqlalchemy
from neutron.db.migration.models import head

head.get_metadata().create_all(sqlalchemy.create_engine(sys.argv[1]))
