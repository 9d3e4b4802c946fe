"""Studies: methods compared on an equal footing over paired seeds."""
