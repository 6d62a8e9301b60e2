"""Which runtimes load an adapter, what they ignore, and what makes it fit: rules from the runtimes' own sources."""
