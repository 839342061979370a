"""What is said to the backbone, and how metadata is put into words."""
