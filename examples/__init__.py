"""Jobs that run as they are, packed with Tablebay."""
