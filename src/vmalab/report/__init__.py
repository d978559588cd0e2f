"""A trace made visible: the report as one HTML file, and the export to the Perfetto UI."""
