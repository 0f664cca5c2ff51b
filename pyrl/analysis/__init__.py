"""Reads record files, never live objects: charts, reports and the laws fitted to them."""
