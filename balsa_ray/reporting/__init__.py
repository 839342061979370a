"""Reports as single HTML files that open offline: the only place that makes HTML."""
