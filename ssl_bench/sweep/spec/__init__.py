"""What a sweep is asked for: a command line or a TOML file, to cells."""
