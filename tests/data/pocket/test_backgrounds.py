"""The ten places: told apart by eye and by phrase, and the same whenever drawn."""

from itertools import combinations

import numpy as np
import pytest

from dclip_kit.data.pocket.backgrounds import PLACES, paint_background


def paint(place: str, side: int = 64, seed: int = 0) -> np.ndarray:
    return np.asarray(paint_background(place, side, np.random.default_rng(seed)))


@pytest.mark.parametrize("place", PLACES)
def test_a_seed_decides_every_pixel(place) -> None:
    assert (paint(place) == paint(place)).all()
    assert (paint(place, seed=1) != paint(place)).any()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("side", [17, 256])
def test_any_side_is_filled_with_more_than_a_flat_colour(place, side) -> None:
    picture = paint(place, side)
    assert picture.shape == (side, side, 3) and picture.dtype == np.uint8
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20
    assert picture.std((0, 1)).max() > 3


def test_places_look_different() -> None:
    """Two of one place are more alike, in a coarse picture, than two of different places."""

    def coarse(place: str, seed: int) -> np.ndarray:
        return paint(place, 256, seed).reshape(8, 32, 8, 32, 3).mean((1, 3))

    seen = {place: [coarse(place, seed) for seed in range(6)] for place in PLACES}
    mean = {place: np.mean(pictures, 0) for place, pictures in seen.items()}
    nearest = [
        min(mean, key=lambda other, picture=picture: np.abs(mean[other] - picture).mean()) == place
        for place, pictures in seen.items()
        for picture in pictures
    ]
    assert np.mean(nearest) > 0.85


def test_each_place_has_phrases_of_its_own() -> None:
    assert len(PLACES) == 10
    for one, other in combinations(PLACES, 2):
        assert not set(PLACES[one][1]) & set(PLACES[other][1])
    assert all(len(set(phrases)) >= 2 for _, phrases in PLACES.values())


def test_an_unknown_place_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"meadow, .*brick wall, got 'moon'"):
        paint("moon")
