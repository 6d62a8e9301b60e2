"""An adapter at another rank."""
