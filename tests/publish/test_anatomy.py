"""The visible faults of the card's samples: their file, and the card's section."""

from pathlib import Path

import pytest

from storydiffusion.errors import UserError
from storydiffusion.publish.anatomy import FILE, UNET, read_anatomy, write_anatomy

CHECKSUMS = {UNET: "ab" * 32}


def write(folder: Path, text: str) -> None:
    (folder / FILE).write_text(text, encoding="utf-8")


def test_faults_are_listed_in_order(tmp_path):
    write(tmp_path, f"unet: {'ab' * 32}\nfaults: {{40: no face, 12: a *third* arm}}\n")
    found = read_anatomy(tmp_path, CHECKSUMS, 64)
    assert found == {12: "a *third* arm", 40: "no face"}
    section = write_anatomy(found, 64)
    assert "Of these 64 samples, looked at one by one, 2 show a visible fault" in section
    assert section.endswith("- 12: a \\*third\\* arm\n- 40: no face\n\n")


def test_no_fault_is_said_and_no_file_is_not(tmp_path):
    assert read_anatomy(tmp_path, CHECKSUMS, 64) is None
    assert write_anatomy(None, 64) == ""
    write(tmp_path, f"unet: {'ab' * 32}\nfaults: {{}}\n")
    assert write_anatomy(read_anatomy(tmp_path, CHECKSUMS, 64), 64).endswith("0 show a visible fault of drawing.\n\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"unet: {'cd' * 32}\nfaults: {{}}\n", "about the weights cdcdcdcdcdcd…, but"),
        (f"unet: {'ab' * 32}\nfaults: {{64: no face}}\n", "names sample 64: choose a number from 0 to 63"),
        (f"unet: {'ab' * 32}\nfaults: {{a: no face}}\n", "names sample 'a'"),
        (f"unet: {'ab' * 32}\nfaults: [12]\n", "has faults=[12]"),
        (f"unet: {'ab' * 32}\nfaults: {{12: 3}}\n", "has faults={12: 3}"),
        ("faults: {}\n", "exactly the keys unet and faults"),
        ("- a\n", "exactly the keys unet and faults"),
        ("a: [\n", "is not valid YAML"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(tmp_path, text, said):
    write(tmp_path, text)
    with pytest.raises(UserError) as error:
        read_anatomy(tmp_path, CHECKSUMS, 64)
    assert said in str(error.value)
    assert FILE in str(error.value)
