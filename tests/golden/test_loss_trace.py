import json

import pytest

from tests.golden.loss_trace import FILE, STEPS, fingerprint, trace


def test_the_losses_are_those_of_the_file(tmp_path, cache, record_property):
    """To the last bit where the file was made on such a processor with these libraries, else to a thousandth."""
    golden = json.loads(FILE.read_text())
    losses = trace(tmp_path, cache)
    assert len(golden["losses"]) == STEPS
    if golden["fingerprint"] == fingerprint():
        assert losses == golden["losses"]
    else:
        record_property("compared", "to 1e-3: the file was made on another machine or with other libraries")
        assert losses == pytest.approx(golden["losses"], rel=1e-3)
