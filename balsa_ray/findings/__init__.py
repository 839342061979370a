"""Does it do what the papers say? The method's comparisons in miniature, over seeds and conditions, with intervals."""
