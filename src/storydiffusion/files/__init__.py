"""Read and write files safely: atomic writes, checksums, JSON and YAML with limits."""
