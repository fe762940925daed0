"""What two papers claim, measured again on the bundled models: `make analysis`."""
