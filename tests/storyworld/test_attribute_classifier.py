"""Both classifiers: files, logits, and the slots of the second edition's."""

import json

import pytest
import torch

from storydiffusion.errors import UserError
from storydiffusion.storyworld.attribute_classifier import CLASSIFIERS, AttributeClassifier, SceneClassifier

every_edition = pytest.mark.parametrize("edition", CLASSIFIERS)


def build(edition: int) -> AttributeClassifier:
    torch.manual_seed(0)
    return CLASSIFIERS[edition]((4, 4, 8)).eval()


@every_edition
def test_logits_have_the_shape_of_every_attribute(edition):
    classifier = build(edition)
    logits = classifier(torch.zeros(3, 3, 128, 128))
    assert list(logits) == list(classifier.labels)
    assert all(logits[name].shape == (3, len(values)) for name, values in classifier.labels.items())


@every_edition
def test_saved_weights_read_the_same(edition, tmp_path):
    classifier = build(edition)
    classifier.half().float()  # files hold float16
    classifier.save(tmp_path)
    loaded = AttributeClassifier.load(tmp_path)
    assert type(loaded) is type(classifier)
    images = torch.rand(5, 3, 128, 128) * 2 - 1
    assert loaded.read(images, batch_size=2) == classifier.read(images)


def test_files_without_an_edition_are_of_the_first(tmp_path):
    build(1).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("edition", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert AttributeClassifier.load(tmp_path).edition == 1


def test_an_unknown_edition_is_refused(tmp_path):
    build(1).save(tmp_path)
    (tmp_path / "config.json").write_text('{"channels": [4, 4, 8], "edition": 9}')
    with pytest.raises(UserError, match="edition 9 is none of 1, 2"):
        AttributeClassifier.load(tmp_path)


def test_characters_share_the_layers_that_read_them():
    classifier = build(2)
    assert isinstance(classifier, SceneClassifier)
    with torch.no_grad():
        classifier.queries[2] = classifier.queries[1]  # equal questions have equal answers
    logits = classifier(torch.rand(2, 3, 128, 128))
    assert torch.allclose(logits["kind_1"], logits["kind_2"], atol=1e-5)


@every_edition
def test_the_loss_falls_on_a_few_images(edition):
    from storydiffusion.storyworld.edition import get_edition
    from storydiffusion.storyworld.images import draw
    from storydiffusion.training.miniature.attribute_classifier import ABSENT, build_labels

    torch.manual_seed(0)
    classifier, batch = CLASSIFIERS[edition]((8, 16, 32)), draw(1, range(8), edition=edition)
    labels = build_labels(get_edition(edition), batch.truths)
    optimizer = torch.optim.AdamW(classifier.parameters(), 3e-3)
    losses = []
    for _ in range(15):
        logits = classifier(batch.images)
        errors = [
            torch.nn.functional.cross_entropy(logits[name], labels[name], ignore_index=ABSENT)
            for name in logits
            if (labels[name] != ABSENT).any()
        ]
        losses.append(torch.stack(errors).mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
