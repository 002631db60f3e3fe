"""What can be refused before any work starts. It stands above all rooms: each validates its own section of the YAML."""
