"""Forward passes that do with their rows what the data say: features are right, whatever they do."""

from __future__ import annotations

import pytest
import torch
from features.drawn_models import BY_DATA, LENGTH, STATIC, TOKENS, Drawn
from features.engines import engine, error, plain
from features.models import seeded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

pytestmark = pytest.mark.filterwarnings("ignore")  # what torch says of its own ways

ROWS, BATCH = 10, 5


def data(seed: int, blank: bool, same: bool) -> tuple[Tensor, Tensor]:
    """Token ids and lengths; the first two rows may be all alike, or as long as another."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, TOKENS, (ROWS, LENGTH), generator=generator)
    lengths = torch.randint(1, LENGTH + 1, (ROWS,), generator=generator)
    if blank:
        ids[:2] = 0
    if same:
        lengths[:2] = torch.tensor([LENGTH, 2])
    return ids, lengths


def check(names: list[str], seed: int, blank: bool = False, same: bool = True) -> None:
    """Features batch by batch are the gradients of each sample alone."""
    model, inputs = seeded(lambda: Drawn(names), seed), data(seed, blank, same)
    own, expected = engine(model), plain(model, inputs)
    for start in range(0, ROWS, BATCH):
        part = tuple(tensor[start : start + BATCH] for tensor in inputs)
        apart = error(own.rows(part).features, expected[start : start + BATCH])
        assert apart < 1e-5, (names, seed, start, apart)


@pytest.mark.parametrize("name", [*STATIC, *BY_DATA])
@pytest.mark.parametrize("seed", [0, 1])
def test_each_part_alone(name: str, seed: int) -> None:
    check([name], seed)


@pytest.mark.parametrize("name", STATIC)
def test_parts_that_do_not_ask_the_data_need_no_other_engine(name: str) -> None:
    own = engine(seeded(lambda: Drawn([name])))
    own.rows(tuple(tensor[:BATCH] for tensor in data(0, blank=True, same=False)))
    assert own.generic_parameters == ()


parts = st.lists(st.sampled_from([*STATIC, *BY_DATA]), min_size=1, max_size=4)
quick = settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
many = settings(quick, max_examples=500)


@quick
@given(parts, st.integers(0, 2**20), st.booleans(), st.booleans())
def test_any_parts(names: list[str], seed: int, blank: bool, same: bool) -> None:
    check(names, seed, blank, same)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@many
@given(parts, st.integers(0, 2**20), st.booleans(), st.booleans())
def test_any_parts_of_many(names: list[str], seed: int, blank: bool, same: bool) -> None:
    check(names, seed, blank, same)
