"""report.html: a run to look at, in one file that asks for nothing from outside."""
