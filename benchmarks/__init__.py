"""What Crossband costs, beside a floor in C and its peers; run `make bench`."""
