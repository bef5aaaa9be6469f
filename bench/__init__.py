"""What guard costs, as ratios of things measured in one run: `make bench`, or `python -m bench`."""
