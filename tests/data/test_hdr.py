"""HDR and wide gamut to sRGB: figures printed in the standards; what holds for any light."""

import numpy as np
import pytest

from srum_jax.data import hdr

# RGB of BT.709 -> of others, as printed: ITU-R BT.2087, and SMPTE EG 432-1 with D65's white.
INTO = {
    9: [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]],
    12: [[0.8225, 0.1774, 0.0001], [0.0332, 0.9668, 0.0000], [0.0171, 0.0724, 0.9105]],
}
COLOURS = np.array([[200, 30, 60], [20, 180, 40], [30, 40, 220], [128, 128, 128], [255, 255, 255]])


def sixteen(signal):
    """[N,3] in 0..1 -> uint16 [1,N,3]."""
    return np.rint(np.asarray(signal) * 65535).astype(np.uint16)[None]


def gray(signal, **colours):
    made = hdr.Colours(**colours).to_srgb(sixteen([[signal] * 3]))[0, 0]
    assert np.ptp(made) <= 1  # gray stays gray
    return int(made[1])


def test_transfer_functions_give_the_standards_figures():
    np.testing.assert_allclose(
        hdr.pq_light(np.array([0, 0.5081, 0.5807, 0.7518, 1])), [0, 100, 203, 1000, 1e4], rtol=2e-3
    )
    np.testing.assert_allclose(
        hdr.hlg_scene(np.array([0, 0.5, 0.75, 1])), [0, 1 / 12, 0.2650, 1], atol=1e-4
    )
    signal = np.linspace(0, 1, 999)
    np.testing.assert_allclose(hdr.pq_signal(hdr.pq_light(signal)), signal, atol=1e-6)
    np.testing.assert_allclose(hdr.srgb_signal(hdr.srgb_light(signal)), signal, atol=1e-6)


# cd/m² of gray -> sRGB by hand: 1 / 203 = 0.00493, 1.055 · 0.00493^(1/2.4) − 0.055 = 0.0602 (15);
# 203 in a film of 1000: BT.2390's knee at 0.659, T = 0.333, out at 0.739 · 0.7518 of PQ, 161 cd/m².
@pytest.mark.parametrize("nits, want", [(0, 0), (1, 15), (10, 63), (50, 136), (203, 230)])
def test_pq_gray(nits, want):
    assert abs(gray(hdr.pq_signal(np.float64(nits)), transfer=hdr.PQ, primaries=9) - want) <= 1


def test_a_film_that_stays_below_white_is_not_bent():
    for nits, want in ((50, 136), (100, 186), (203, 255)):
        found = gray(hdr.pq_signal(np.float64(nits)), transfer=hdr.PQ, primaries=9, peak=203)
        assert abs(found - want) <= 1


@pytest.mark.parametrize("peak", [203, 400, 1000, 4000, 10_000, 1e9, 0])
def test_brighter_light_is_never_darker_and_the_peak_is_white(peak):
    light = np.linspace(0, 10_000, 5000)
    toned = light * hdr.tone_ratio(light, peak)
    assert np.isfinite(toned).all() and (np.diff(toned) > -1e-6).all()
    within = np.clip(peak, hdr.WHITE, 10_000)
    assert toned[light >= within] == pytest.approx(hdr.WHITE, rel=1e-5)
    assert toned[1] == pytest.approx(light[1], rel=1e-5)


def test_hlg_gray():
    """75 % is 203 cd/m² on a screen of 1000 (BT.2408), shown as PQ's 203 is; 100 % is white."""
    assert abs(gray(0.75, transfer=hdr.HLG, primaries=9) - 230) <= 1
    assert gray(1, transfer=hdr.HLG, primaries=9) == 255 and gray(0, transfer=18, primaries=9) == 0
    scene = 0.25**2 / 3  # 1000 · (0.0208)^1.2 = 9.6 cd/m²
    want = 255 * hdr.srgb_signal(1000 * scene**1.2 / 203)
    assert abs(gray(0.25, transfer=hdr.HLG, primaries=9) - want) <= 1


@pytest.mark.parametrize("primaries", [9, 12])
def test_colours_that_srgb_has_are_kept(primaries):
    wide = hdr.srgb_signal(hdr.srgb_light(COLOURS / 255) @ np.array(INTO[primaries]).T)
    found = hdr.Colours(transfer=1, primaries=primaries).to_srgb(sixteen(wide))[0]
    np.testing.assert_allclose(found, COLOURS, atol=2)


def test_dark_colours_of_hdr_are_kept():
    light = 60 * hdr.srgb_light(COLOURS / 255) @ np.array(INTO[9]).T  # 60 cd/m² for white
    want = 255 * hdr.srgb_signal(hdr.srgb_light(COLOURS / 255) * 60 / 203)
    found = hdr.Colours(transfer=hdr.PQ, primaries=9).to_srgb(sixteen(hdr.pq_signal(light)))[0]
    np.testing.assert_allclose(found, want, atol=2)
    unnamed = hdr.Colours(transfer=hdr.PQ, primaries=2).to_srgb(sixteen(hdr.pq_signal(light)))[0]
    assert (unnamed == found).all()


@pytest.mark.parametrize("primaries", [9, 11, 12])
def test_primaries_beyond_srgb_are_its_own(primaries):
    found = hdr.Colours(transfer=1, primaries=primaries).to_srgb(sixteen(np.eye(3)))[0]
    assert (found.argmax(1) == [0, 1, 2]).all() and (found.max(1) >= 254).all()


def test_pictures_larger_than_a_band_are_converted_whole(monkeypatch):
    monkeypatch.setattr(hdr, "_BAND", 7)
    signal = np.random.default_rng(0).integers(0, 65536, (5, 6, 3)).astype(np.uint16)
    colours = hdr.Colours(hdr.PQ, 9)
    small = colours.to_srgb(signal)
    monkeypatch.undo()
    assert (small == colours.to_srgb(signal)).all() and small.shape == (5, 6, 3)


def test_plain_films_are_known():
    plain = [(2, 2), (1, 1), (13, 1), (6, 6), (14, 1)]
    assert all(hdr.Colours(*codes).plain for codes in plain)
    assert not any(hdr.Colours(*codes).plain for codes in [(16, 9), (18, 9), (16, 1), (1, 9)])
