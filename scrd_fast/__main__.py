# SPDX-License-Identifier: Apache-2.0
"""`python -m scrd_fast` is `scrd-fast`."""

import sys

from scrd_fast.cli import main

sys.exit(main())
