"""What a run leaves behind: comic page, HTML report, manifest, and files that are either whole or not there."""
