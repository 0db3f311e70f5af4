"""pathctl - the control plane: configuration, sequences, supervision, API and command line."""
