"""`python -m tablebay.client.cli`: the command line where the `tablebay` command is not on the path."""

from __future__ import annotations

import sys

from tablebay.client.cli import main

sys.exit(main())
