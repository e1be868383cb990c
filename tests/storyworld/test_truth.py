import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import FrozenInstanceError, replace

import pytest

from storydiffusion.errors import UserError
from storydiffusion.storyworld.poses import STILL_PHASE
from storydiffusion.storyworld.truth import ATTRIBUTES, Truth, sample_truth

DIGEST = "021af5c1d6780a52b3a1fc65c9d26c636e8321b3fdd262a814962d8851f9ac4d"
FRESH = """
import hashlib, json, sys
from storydiffusion.storyworld.truth import sample_truth
import storydiffusion.storyworld.captions
records = [sample_truth(7, i).to_dict() for i in range(200)]
print(hashlib.sha256(json.dumps(records, sort_keys=True).encode()).hexdigest())
print(sorted({"skia", "numpy", "torch"} & set(sys.modules)))
"""


def test_world_is_the_same_on_every_machine():
    records = [sample_truth(7, i).to_dict() for i in range(200)]
    assert hashlib.sha256(json.dumps(records, sort_keys=True).encode()).hexdigest() == DIGEST


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_a_fresh_process_samples_the_same_without_heavy_imports(hash_seed):
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", FRESH]
    digest, heavy = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )[:2]
    assert digest == DIGEST
    assert heavy == "[]"


def test_every_value_is_drawn_about_equally_often():
    truths = [sample_truth(1, i) for i in range(3000)]
    for name, values in ATTRIBUTES.items():
        drawn = [value for t in truths if (value := getattr(t, name)) is not None]
        counts = Counter(drawn)
        assert set(counts) == set(values)
        expected = len(drawn) / len(values)
        assert all(0.75 * expected < count < 1.25 * expected for count in counts.values()), name


def test_seeds_and_indices_give_different_truths():
    assert len({sample_truth(seed, index) for seed in range(5) for index in range(100)}) == 500


def test_fixing_one_field_leaves_the_others():
    for index in range(50):
        free = sample_truth(3, index)
        fixed = sample_truth(3, index, place="beach")
        assert fixed.place == "beach"
        assert replace(fixed, place=free.place) == free


def test_stills_take_the_phase_of_their_action():
    for action, phase in STILL_PHASE.items():
        assert sample_truth(0, 0, action=action).phase == phase
    assert sample_truth(0, 0, action="jumping", phase=0.1).phase == 0.1


def test_colours_of_absent_parts_are_none():
    for index in range(200):
        t = sample_truth(4, index)
        assert (t.hair is None) == (t.kind not in ("girl", "boy"))
        assert (t.hat_color is None) == (t.hat == "none")
    assert sample_truth(0, 0, kind="robot", hair="red").hair is None
    assert sample_truth(0, 0, hat="none", hat_color="red").hat_color is None


def test_json_round_trip_and_frozen():
    truth = sample_truth(0, 1)
    assert Truth.from_dict(json.loads(json.dumps(truth.to_dict()))) == truth
    with pytest.raises(FrozenInstanceError):
        truth.kind = "cat"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "dog"}, "'dog'.*girl, boy"),
        ({"kind": "boy", "hair": "green"}, "hair is 'green'"),
        ({"phase": 1.5}, "phase is 1.5"),
        ({"x": 30.0}, "x is 30"),
        ({"facing": 0}, "facing is 0"),
        ({"action": "flying"}, "'flying'"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_errors_name_invalid_values(wrong, message):
    with pytest.raises(UserError, match=message):
        sample_truth(0, 0, **wrong)


def test_hair_on_a_robot_is_refused():
    with pytest.raises(UserError, match="hair is 'red'"):
        replace(sample_truth(0, 0, kind="robot"), hair="red")
