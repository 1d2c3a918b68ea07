"""Memory errors, undefined behaviour and races: sanitizers, another kind of machine, and threads (`make sanitize`)."""
