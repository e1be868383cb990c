"""The name under which a run is known elsewhere: drawn once, then kept in its folder."""

import secrets
from pathlib import Path

FILE = "run_id"


def run_id(folder: str | Path) -> str:
    """Eight characters, the same whenever the run goes on; processes that begin together agree on the first one's."""
    file = Path(folder) / FILE
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(secrets.token_hex(4))
    except FileExistsError:
        pass
    return file.read_text(encoding="utf-8")
