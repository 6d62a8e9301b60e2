"""Length of a lab: full for readers, or quick for the tests."""

import os

QUICK = os.environ.get("ECKART_LABS") == "quick"
