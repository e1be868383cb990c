"""The paper's claims, measured: what is run, how it is judged, and RESULTS.md."""
