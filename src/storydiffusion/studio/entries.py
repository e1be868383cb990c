"""studio.json: what is entered in the page of a project and is not part of its story, so that a reload keeps it."""

from dataclasses import asdict, dataclass
from pathlib import Path

from storydiffusion.errors import UserError
from storydiffusion.files.atomic import write_atomically
from storydiffusion.files.json_file import build, json_bytes, read_object
from storydiffusion.studio.look import Look

FILE = "studio.json"
LONGEST_IDEA = 200_000  # characters


@dataclass(frozen=True)
class Entries:
    """What is entered.

    Attributes:
        look: None where it is that of what was generated, or else the studio's.
        idea: the idea or text from which the story was written, or the next one will be.

    Raises:
        UserError: an idea that is too long, or that no file can hold.
    """

    look: Look | None = None
    idea: str = ""

    def __post_init__(self) -> None:
        if len(self.idea) > LONGEST_IDEA:
            raise UserError(f"the idea has {len(self.idea)} characters: write at most {LONGEST_IDEA}")
        try:
            self.idea.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"the idea has half a character at {error.start + 1}: write it again") from error


def read_entries(folder: Path) -> Entries:
    """Return what is entered for the project in a folder. Raises UserError for a damaged file."""
    file = folder / FILE
    if not file.exists():
        return Entries()
    try:
        return build(Entries, read_object(file))
    except (OSError, ValueError, UserError) as error:
        raise UserError(f"{file} is damaged ({error}): remove it") from error


def write_entries(folder: Path, entries: Entries) -> None:
    """Replace what is entered for the project in a folder."""
    if entries == Entries():
        (folder / FILE).unlink(missing_ok=True)
    else:
        write_atomically(folder / FILE, json_bytes(asdict(entries)))
