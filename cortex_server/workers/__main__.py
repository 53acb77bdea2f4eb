"""A worker process: `python -m cortex_server.workers CHANNEL BOARD COLUMN`, started by the control process alone."""

from __future__ import annotations

import sys

from cortex_server.workers.process import work

work(*map(int, sys.argv[1:4]))
