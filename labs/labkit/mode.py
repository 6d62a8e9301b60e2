"""How long a lab may take: in full for readers, or the quick form, which the tests run."""

import os

QUICK = os.environ.get("ECKART_LABS") == "quick"
