"""An adapter at another rank, exactly."""
