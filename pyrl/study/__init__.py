"""`pyrl study`: methods x seeds x settings, one run after another on one server, and one report."""
