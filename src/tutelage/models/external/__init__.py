"""Networks from outside of this package: external model libraries and users' code, one file each."""
