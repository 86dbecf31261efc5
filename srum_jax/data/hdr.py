"""Colours of HDR and wide-gamut films as those of an ordinary screen, in NumPy.

Owns the formulas between R'G'B' of a film and sRGB: transfer functions, tone curve, gamut. Codes
are those of ITU-T H.273; what has none here is taken to be sRGB's own, as players do.
"""

import dataclasses
import functools

import numpy as np

PQ, HLG = 16, 18  # transfer functions of HDR
WHITE = 203.0  # cd/m² of white paper in HDR, here sRGB's white (ITU-R BT.2408, table 1)
PEAK = 1000.0  # cd/m², of the screen that HLG is for (BT.2100), and where a PQ film names none
_MAX_PEAK = 10_000.0  # cd/m², the end of PQ
_BAND = 2**20  # pixels converted at a time
# x, y of red, green, blue (ITU-T H.273, table 2). All white points are taken to be D65's: P3 of
# cinemas (11) differs from P3 of screens (12) by that alone.
_BT709 = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060))
_BT2020 = ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046))
_P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
_D65 = (0.3127, 0.3290)
WIDE = {9: _BT2020, 11: _P3, 12: _P3}  # primaries beyond sRGB's
_NAMED = {1: _BT709, **WIDE}
_M1, _M2 = 2610 / 16384, 2523 / 4096 * 128  # PQ
_C1, _C2, _C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
_A, _B, _C = 0.17883277, 0.28466892, 0.55991073  # HLG
_LUMA = np.float32([0.2627, 0.6780, 0.0593])  # of BT.2020
_CODES = np.arange(2**16) / (2**16 - 1)  # all values of 16 bits


@dataclasses.dataclass(frozen=True)
class Colours:
    """What a film's numbers mean: transfer function and primaries by their codes, and `peak`, the
    brightest light in it in cd/m², which HDR alone needs."""

    transfer: int
    primaries: int
    peak: float = PEAK

    @property
    def plain(self) -> bool:
        """Whether a screen shows them as they are."""
        return self.transfer not in (PQ, HLG) and self.primaries not in WIDE

    def to_srgb(self, picture: np.ndarray) -> np.ndarray:
        """uint16 [H,W,3], R'G'B' of full range -> uint8 [H,W,3] of sRGB.

        Light above WHITE is brought below it by `tone_ratio`; colours that sRGB lacks are clipped.
        The memory beside picture and result does not grow with them.
        """
        made = np.empty(picture.shape, np.uint8)
        of_light = np.rint(255 * srgb_signal(_CODES)).astype(np.uint8)
        lines = max(1, _BAND // picture.shape[1])
        for start in range(0, len(picture), lines):
            band = np.s_[start : start + lines]
            light = self._light(picture[band].reshape(-1, 3)) @ self._gamut.T
            codes = (light.clip(0, 1) * 65535 + 0.5).astype(np.uint16)
            made[band] = of_light[codes].reshape(made[band].shape)
        return made

    def _light(self, signal: np.ndarray) -> np.ndarray:
        """uint16 [N,3] -> float32 [N,3], linear, 1 is white; in the film's primaries."""
        light = self._table[signal]
        if self.transfer == HLG:  # the scene's light to that of a screen of PEAK (BT.2100, OOTF)
            light *= np.float32(PEAK) * (light @ _LUMA)[:, None] ** np.float32(0.2)
        if self.transfer in (PQ, HLG):
            brightest = light.max(axis=1, keepdims=True)
            light *= tone_ratio(brightest, self.peak) / np.float32(WHITE)
        return light

    @functools.cached_property
    def _table(self) -> np.ndarray:
        """float32 [65536]: what `signal` becomes, alone."""
        of = {PQ: pq_light, HLG: hlg_scene}.get(self.transfer, srgb_light)
        return of(_CODES).astype(np.float32)

    @functools.cached_property
    def _gamut(self) -> np.ndarray:
        """float32 [3,3]: linear RGB of these primaries -> of sRGB's, which are BT.709's."""
        default = _BT2020 if self.transfer in (PQ, HLG) else _BT709  # BT.2100 has no others
        mine = _NAMED.get(self.primaries, default)
        return np.linalg.solve(_to_xyz(_BT709), _to_xyz(mine)).astype(np.float32)


def pq_light(signal: np.ndarray) -> np.ndarray:
    """PQ in 0..1 -> cd/m² in 0..10,000 (BT.2100 table 4, EOTF)."""
    root = signal ** (1 / _M2)
    return _MAX_PEAK * (np.maximum(root - _C1, 0) / (_C2 - _C3 * root)) ** (1 / _M1)


def pq_signal(light: np.ndarray) -> np.ndarray:
    """cd/m² in 0..10,000 -> PQ in 0..1 (BT.2100 table 4, inverse EOTF)."""
    power = (light / _MAX_PEAK) ** _M1
    return ((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2


def hlg_scene(signal: np.ndarray) -> np.ndarray:
    """HLG in 0..1 -> the scene's light in 0..1 (BT.2100 table 5, inverse OETF)."""
    bright = (np.exp((np.maximum(signal, 0.5) - _C) / _A) + _B) / 12
    return np.where(signal <= 0.5, signal**2 / 3, bright)


def srgb_light(signal: np.ndarray) -> np.ndarray:
    """sRGB in 0..1 -> linear in 0..1 (IEC 61966-2-1)."""
    return np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)


def srgb_signal(light: np.ndarray) -> np.ndarray:
    """Linear in 0..1 -> sRGB in 0..1 (IEC 61966-2-1)."""
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def tone_ratio(light: np.ndarray, peak: float) -> np.ndarray:
    """By what light in cd/m² is multiplied so that `peak` becomes WHITE, and dark stays as it is.

    The curve of ITU-R BT.2390 (EETF), applied to the brightest of R, G and B, so that the
    hue stays.
    """
    peak = min(max(peak, WHITE), _MAX_PEAK)
    top = pq_signal(peak)
    white = pq_signal(WHITE) / top
    knee = 1.5 * white - 0.5
    signal = np.minimum(pq_signal(light) / top, 1)
    t = np.maximum(signal - knee, 0) / max(1 - knee, 1e-6)
    bent = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee)
    bent += (3 * t**2 - 2 * t**3) * white
    toned = pq_light(np.where(signal < knee, signal, bent) * top)
    return toned / np.maximum(light, 1e-6)


def _to_xyz(primaries) -> np.ndarray:
    """[3,3]: linear RGB of primaries with D65's white -> CIE XYZ (SMPTE RP 177)."""
    xyz = np.array([(x / y, 1, (1 - x - y) / y) for x, y in (*primaries, _D65)]).T
    return xyz[:, :3] * np.linalg.solve(xyz[:, :3], xyz[:, 3])
