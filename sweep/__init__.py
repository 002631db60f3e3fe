"""Which serving settings are best on this machine: measured on a release, written into the domain's YAML."""
