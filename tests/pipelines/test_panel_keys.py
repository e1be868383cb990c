"""Keys of panels: what they depend on, and on nothing else."""

import torch

from storydiffusion.pipelines.panel_keys import compute_keys, find_reach

INPUTS = [["a cat", "", 1], ["a fox", "", 2], ["a girl", "", 3], ["a book", "", 4]]


def graph(*arrows: tuple[int, int], panels: int = 4) -> torch.Tensor:
    """(i, j): panel i reads panel j."""
    sources = torch.zeros(panels, panels, dtype=torch.bool)
    for reader, source in arrows:
        sources[reader, source] = True
    return sources


def changed(sources: torch.Tensor, panel: int) -> list[int]:
    """Panels whose keys change with the prompt of a panel."""
    other = [*INPUTS]
    other[panel] = ["a hat", "", 9]
    before, after = compute_keys(INPUTS, sources, [], []), compute_keys(other, sources, [], [])
    return [n for n, (one, two) in enumerate(zip(before, after, strict=True)) if one != two]


def test_a_key_depends_on_the_panels_whose_features_reach_the_panel():
    chain = graph((1, 0), (2, 1))
    assert [changed(chain, panel) for panel in range(4)] == [[0, 1, 2], [1, 2], [2], [3]]
    assert changed(torch.ones(4, 4, dtype=torch.bool).fill_diagonal_(False), 3) == [0, 1, 2, 3]
    assert find_reach(chain)[2].tolist() == [True, True, True, False]


def test_a_panel_that_reads_none_has_its_key_anywhere():
    alone = graph()
    assert compute_keys(INPUTS[::-1], alone, [], []) == compute_keys(INPUTS, alone, [], [])[::-1]
    assert compute_keys(INPUTS[:2], alone[:2, :2], [], []) == compute_keys(INPUTS, alone, [], [])[:2]
    assert compute_keys(INPUTS, alone, [], ["rate 0"]) == compute_keys(INPUTS, alone, [], ["off"])


def test_a_reading_panel_depends_on_its_place_the_number_of_panels_and_how_it_reads():
    anchor = graph((1, 0), (2, 0), (3, 0))
    keys = compute_keys(INPUTS, anchor, [], [])
    assert len(set(keys)) == 4
    fewer = compute_keys(INPUTS[:3], anchor[:3, :3], [], [])
    assert [one == two for one, two in zip(keys, fewer, strict=False)] == [True, False, False]
    other = compute_keys(INPUTS, anchor, [], ["seed 1"])
    assert [one == two for one, two in zip(keys, other, strict=True)] == [True, False, False, False]
    settings = compute_keys(INPUTS, anchor, ["steps 3"], [])
    assert not set(keys) & set(settings)
