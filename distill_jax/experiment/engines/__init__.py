"""Who places the units of a sweep on machines: each engine is one file, and takes the same units (`work_units`)."""
