"""How the bundled models are made: data, training, evaluation, export. `make model` runs all of it. Not installed."""
