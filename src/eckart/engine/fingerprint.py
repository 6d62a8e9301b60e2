"""A digest of everything that a result depends on, so that an interrupted run is never resumed with other inputs."""

import hashlib
import json
from typing import Any

from eckart.version import __version__


def fingerprint(facts: Any) -> str:
    """A hex digest of `facts` and of the version of eckart.

    Args:
        facts: anything that JSON can express; keys are sorted, so their order does not matter.
    """
    return hashlib.sha256(json.dumps([__version__, facts], sort_keys=True).encode()).hexdigest()
