"""Numbers read off the pixels of one picture, without any model and without thresholds. Grey values are float32 from 0 to 255."""
from __future__ import annotations

import numpy as np

EDGE_PIXELS = 60
FEWEST_CHANGES = 24
SMOOTH, SMOOTHER = 0.7, 1.6
"""Standard deviations in pixels at which edges are compared."""
KEPT_QUANTILE = 0.8
"""Simple blocks look the same with and without damage; this is the complexity of the others."""


def edge_width(grey_HW: np.ndarray) -> tuple[float, float]:
    """Blur of the picture's sharpest edges, as the standard deviation in pixels of a Gaussian: in the sharpest direction, and across it.

    An edge is smoothed once more, and how much it loses tells how wide it was (Zhuo and Sim, "Defocus map estimation from a single
    image", 2011). Blur from motion widens the edges across it only. (0, 0) where there are too few edges to tell.
    """
    first, second = gaussian(grey_HW, SMOOTH), gaussian(grey_HW, SMOOTHER)
    dx, dy = _slopes(first)
    strength, weaker = np.hypot(dx, dy), np.hypot(*_slopes(second))
    if not strength.size:
        return 0.0, 0.0
    limit = max(1.2, 0.3 * float(np.quantile(strength[::2, ::2], 0.997)))
    edges = (strength > limit) & _ridge(strength, dx, dy)
    if edges.sum() < EDGE_PIXELS:
        return 0.0, 0.0
    ratio = np.square(strength[edges] / np.maximum(weaker[edges], 1e-3))
    width = np.sqrt(np.clip((SMOOTHER ** 2 - ratio * SMOOTH ** 2) / np.maximum(ratio - 1, 1e-2), 0.0, 100.0))
    octant = (np.round(np.arctan2(dy[edges], dx[edges]) / (np.pi / 4)).astype(int)) % 4
    enough = max(EDGE_PIXELS / 3, 0.02 * edges.sum())
    widths = {i: float(np.quantile(width[octant == i], 0.2)) for i in range(4) if (octant == i).sum() > enough}
    if not widths:
        return 0.0, 0.0
    sharpest = min(widths, key=widths.get)
    return widths[sharpest], widths.get((sharpest + 2) % 4, widths[sharpest])


def smeared(grey_HW: np.ndarray) -> tuple[float, float]:
    """(smoothness, how much smoother than across it) of the smoothest direction of four: neighbours' differences in relation to those of
    pixels four apart are 0.25 on a ramp, above 0.3 where there is detail. Motion takes the detail from one direction only."""
    found = []
    for one, other in (((0, 1), (1, 0)), ((1, 1), (1, -1))):
        first, second = _relative_steps(grey_HW, one), _relative_steps(grey_HW, other)
        found.append((min(first, second), max(first, second) / max(min(first, second), 1e-3)))
    return max(found, key=lambda pair: pair[1])


def _relative_steps(grey_HW: np.ndarray, direction: tuple[int, int]) -> float:
    def steps(length: int) -> float:
        down, right = direction[0] * length, abs(direction[1]) * length
        height, width = grey_HW.shape
        if direction[1] >= 0:
            return float(np.abs(grey_HW[down:, right:] - grey_HW[:height - down, :width - right]).mean())
        return float(np.abs(grey_HW[down:, :width - right] - grey_HW[:height - down, right:]).mean())
    return steps(1) / max(steps(4), 1e-3) if min(grey_HW.shape) > 8 else 1.0


def steepest(grey_HW: np.ndarray) -> tuple[float, float]:
    """(grey levels between neighbours, relation to those across it) of the direction of four whose strongest edges are weakest. A drawing of
    flat colours has no texture that motion would smear, but edges of all directions, and along the motion they become ramps."""
    found = []
    for one, other in (((0, 1), (1, 0)), ((1, 1), (1, -1))):
        first, second = _strongest_step(grey_HW, one), _strongest_step(grey_HW, other)
        found.append((min(first, second), max(first, second) / max(min(first, second), 0.5)))
    return max(found, key=lambda pair: pair[1])


def _strongest_step(grey_HW: np.ndarray, direction: tuple[int, int]) -> float:
    down, right = direction
    height, width = grey_HW.shape
    if min(height, width) < 16:
        return 0.0
    first = grey_HW[:height - down, max(0, -right):width - max(0, right)]
    second = grey_HW[down:, max(0, right):width - max(0, -right)]
    return float(np.quantile(np.abs(first - second)[::2], 0.9995))


def _slopes(grey_HW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Central differences, without the outermost pixels."""
    return (grey_HW[1:-1, 2:] - grey_HW[1:-1, :-2]) * 0.5, (grey_HW[2:, 1:-1] - grey_HW[:-2, 1:-1]) * 0.5


def _ridge(strength: np.ndarray, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Where an edge is strongest, looked at across it."""
    padded = np.pad(strength, 1)
    left, right, above, below = padded[1:-1, :-2], padded[1:-1, 2:], padded[:-2, 1:-1], padded[2:, 1:-1]
    across_x = np.abs(dx) > np.abs(dy)
    return np.where(across_x, (strength >= left) & (strength > right), (strength >= above) & (strength > below))


def gaussian(grey_HW: np.ndarray, sigma: float) -> np.ndarray:
    reach = max(1, int(np.ceil(2.5 * sigma)))
    kernel = np.exp(-0.5 * np.square(np.arange(-reach, reach + 1) / sigma))
    kernel = (kernel / kernel.sum()).astype(np.float32)
    for axis in (0, 1):
        padding = [(reach, reach) if a == axis else (0, 0) for a in (0, 1)]
        padded = np.pad(grey_HW, padding, mode="edge")
        length = grey_HW.shape[axis]
        parts = [padded[i:i + length] if axis == 0 else padded[:, i:i + length] for i in range(2 * reach + 1)]
        # the kernel is symmetric: two parts share each factor
        grey_HW = parts[reach] * kernel[reach]
        for i in range(reach):
            grey_HW += (parts[i] + parts[2 * reach - i]) * kernel[i]
    return grey_HW


def noise(grey_HW: np.ndarray) -> tuple[float, float]:
    """Standard deviation of the noise in the smoothest parts, and how much of it goes when the picture is halved: 2 for noise, about 1
    or less for texture, whose neighbouring pixels belong together (Immerkaer, "Fast noise variance estimation", 1996, by tiles)."""
    fine = _tile_noise(grey_HW)
    if fine.size < 16:
        return 0.0, 0.0
    height, width = grey_HW.shape[0] // 2 * 2, grey_HW.shape[1] // 2 * 2
    halved = grey_HW[:height, :width].reshape(height // 2, 2, width // 2, 2).mean((1, 3))
    coarse = _tile_noise(halved, tile=8)
    low, low_coarse = float(np.quantile(fine, 0.15)), float(np.quantile(coarse, 0.15)) if coarse.size else 0.0
    return low, low / max(low_coarse, 0.05)


def _tile_noise(grey_HW: np.ndarray, tile: int = 16) -> np.ndarray:
    """Noise of each tile that is neither pure black nor pure white, where noise is cut off."""
    across = grey_HW[:, 2:] - 2 * grey_HW[:, 1:-1] + grey_HW[:, :-2]
    mask = np.abs(across[2:] - 2 * across[1:-1] + across[:-2])
    rows, columns = mask.shape[0] // tile, mask.shape[1] // tile
    cut = (slice(0, rows * tile), slice(0, columns * tile))
    mean_of = lambda values: values[cut].reshape(rows, tile, columns, tile).mean((1, 3))
    level = mean_of(grey_HW[1:-1, 1:-1])
    return (np.sqrt(np.pi / 2) / 6 * mean_of(mask))[(level > 8) & (level < 247)]


def block_damage(grey_HW: np.ndarray) -> tuple[float, float]:
    """What heavy JPEG compression leaves behind, also after the file was saved in another format: the share of the 63 frequencies that
    the blocks of 8x8 pixels still have, where the grid fits, and the same where it is shifted. (1, 1) without enough
    blocks that hold anything."""
    phase_x, phase_y = _grid_phase(grey_HW), _grid_phase(grey_HW.T)
    kept = _frequencies(grey_HW[phase_y:, phase_x:])
    # several shifts: edges of a drawing may by chance lie where they look simple
    shifts = [_frequencies(grey_HW[(phase_y + y) % 8:, (phase_x + x) % 8:]) for y, x in ((4, 4), (3, 5), (5, 2))]
    return (1.0, 1.0) if kept is None or None in shifts else (kept, max(shifts))


def _grid_phase(grey_HW: np.ndarray) -> int:
    """Column, of 8, at which blocks begin: there the steps between neighbours are largest."""
    steps = np.abs(np.diff(grey_HW, axis=1))
    # strong edges belong to the picture, not to the compression
    steps = np.minimum(steps, 12).mean(0)
    width = len(steps) // 8 * 8
    if not width:
        return 0
    return (int(steps[:width].reshape(-1, 8).mean(0).argmax()) + 1) % 8


def _frequencies(grey_HW: np.ndarray) -> float | None:
    rows, columns = grey_HW.shape[0] // 8, grey_HW.shape[1] // 8
    if rows * columns < 24:
        return None
    blocks = grey_HW[:rows * 8, :columns * 8].reshape(rows, 8, columns, 8).transpose(0, 2, 1, 3).reshape(-1, 8, 8)
    spread = blocks.std((1, 2))
    blocks = blocks[(spread > 3) & (blocks.min((1, 2)) > 1) & (blocks.max((1, 2)) < 254)]
    if len(blocks) < 24:
        return None
    coefficients = DCT @ blocks[:4000] @ DCT.T
    present = (np.abs(coefficients) > 1.5).sum((1, 2)) - 1
    return float(np.quantile(present, KEPT_QUANTILE)) / 63


def jpeg_history(rgb_HW3: np.ndarray, grey_HW: np.ndarray) -> tuple[float, int]:
    """(certainty up to 1, quality from 3 to 30) of a JPEG that a picture once was, whatever it is saved as now: the frequencies of its blocks
    are multiples of the standard's steps for that quality (Fan and de Queiroz, "Identification of bitmap compression history: JPEG detection
    and quantizer estimation", 2003). A certainty of 0 is chance; the quality is 100 where there is too little to tell."""
    cut_off_HW = ((rgb_HW3 == 0) | (rgb_HW3 == 255)).any(-1)
    best = (0.0, 100)
    for down in _likely_phases(grey_HW.T):
        for right in _likely_phases(grey_HW):
            coefficients, frequency = _largest_frequencies(grey_HW[down:, right:], cut_off_HW[down:, right:])
            if len(coefficients) < FEWEST_FREQUENCIES:
                continue
            steps_QN = QUANTIZATION[:, frequency]
            near = np.abs(coefficients - steps_QN * np.round(coefficients / steps_QN)) < NEAR
            chance = np.minimum(2 * NEAR / steps_QN, 1).mean(1)
            certainty = (near.mean(1) - chance) / (1 - chance + 1e-6)
            # the steps of a quality are multiples of those of one that is twice as high, too
            first = int((certainty > 0.9 * certainty.max()).argmax())
            best = max(best, (float(certainty[first]), QUALITIES[first]))
    return best


def _likely_phases(grey_HW: np.ndarray, most: int = 3) -> list[int]:
    """Columns, of 8, at which blocks may begin, the likeliest first; patterns of a drawing have edges at regular places too."""
    steps = np.minimum(np.abs(np.diff(grey_HW, axis=1)), 12).mean(0)
    width = len(steps) // 8 * 8
    return [(int(i) + 1) % 8 for i in np.argsort(-steps[:width].reshape(-1, 8).mean(0))[:most]] if width else []


def _largest_frequencies(grey_HW: np.ndarray, cut_off_HW: np.ndarray, most: int = 160) -> tuple[np.ndarray, np.ndarray]:
    """(coefficients, which of the 63 frequencies each is) above 6 grey levels, of some blocks of 8x8 in which no colour is cut off."""
    rows, columns = grey_HW.shape[0] // 8, grey_HW.shape[1] // 8
    blocks = grey_HW[:rows * 8, :columns * 8].reshape(rows, 8, columns, 8)
    sample = blocks[:, ::3, :, ::3]
    has_detail = sample.max((1, 3)) - sample.min((1, 3)) > 4 if rows and columns else np.zeros((0, 0), dtype=bool)
    usable = has_detail & ~cut_off_HW[:rows * 8, :columns * 8].reshape(rows, 8, columns, 8).any((1, 3)) if has_detail.size else has_detail
    row, column = np.nonzero(usable)
    chosen = slice(None, None, max(1, len(row) // most))
    values = np.abs(DCT @ blocks.transpose(0, 2, 1, 3)[row[chosen], column[chosen]] @ DCT.T).reshape(-1, 64)[:, 1:]
    block, frequency = np.nonzero(values > 6)
    return values[block, frequency], frequency


def _dct_matrix(size: int = 8) -> np.ndarray:
    """The orthonormal discrete cosine transform (type II)."""
    k, n = np.mgrid[:size, :size]
    matrix = np.cos(np.pi * (n + 0.5) * k / size) * np.sqrt(2 / size)
    matrix[0] *= np.sqrt(0.5)
    return matrix.astype(np.float32)


DCT = _dct_matrix()
LUMINANCE = np.array([
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99])
"""The luminance table that the JPEG standard prints (ITU-T T.81, annex K), which libjpeg calls quality 50."""
QUALITIES = tuple(range(3, 31))
QUANTIZATION = np.stack([np.clip((LUMINANCE[1:] * (5000 / quality) + 50) // 100, 1, 255) for quality in QUALITIES]).astype(np.float32)
NEAR, FEWEST_FREQUENCIES = 1.6, 40
"""Grey levels by which rounding to whole numbers moves a frequency, and from how many of them something is concluded."""
DCT32 = _dct_matrix(32)
_LARGEST_32 = np.maximum(*np.mgrid[:32, :32])
FINE, COARSE = _LARGEST_32 >= 18, (_LARGEST_32 >= 8) & (_LARGEST_32 < 16)


def jpeg_quality(tables: dict[int, list[int]] | None) -> int:
    """The quality from 1 to 100 that libjpeg would call a file's luminance table; 100 for other formats."""
    if not tables or 0 not in tables:
        return 100
    scale = 100 * (sum(tables[0]) / len(tables[0])) / LUMINANCE.mean()
    quality = (200 - scale) / 2 if scale <= 100 else 5000 / scale
    return int(np.clip(round(quality), 1, 100))


def enlarged_by(grey_HW: np.ndarray, has_grid: bool) -> tuple[float, float]:
    """(factor, certainty) by which a picture was enlarged; interpolation leaves a period in the second differences of its pixels
    (Gallagher, "Detection of linear and cubic interpolation in JPEG compressed images", 2005). (1, 0) when there is none.

    Compression has periods of its own, which are passed over with `has_grid`. A factor of 3 may be 1.5 too, which looks the same.
    """
    found = [_period(grey_HW, has_grid), _period(grey_HW.T, has_grid)]
    factors, strengths = zip(*found)
    if abs(factors[0] - factors[1]) > 0.06 * max(factors):
        return 1.0, 0.0
    return float(np.mean(factors)), float(min(strengths))


def _period(grey_HW: np.ndarray, has_grid: bool) -> tuple[float, float]:
    second = np.abs(grey_HW[:, 2:] - 2 * grey_HW[:, 1:-1] + grey_HW[:, :-2])
    # a few strong edges must not outweigh all the rest
    signal = np.log1p(np.minimum(second, 20)).mean(0)
    if len(signal) < 64:
        return 1.0, 0.0
    spectrum = np.abs(np.fft.rfft((signal - gaussian(signal[None], 4.0)[0]) * np.hanning(len(signal))))
    frequency = np.arange(len(spectrum)) / len(signal)
    usable = frequency > 0.24
    if has_grid:
        for eighth in (2, 3, 4):
            usable &= np.abs(frequency - eighth / 8) > 3 / len(signal)
    peak = int(np.where(usable, spectrum, 0).argmax())
    typical = float(np.median(spectrum[frequency > 0.2])) + 1e-6
    return 1 / max(frequency[peak], 0.24), float(spectrum[peak]) / typical


def fine_detail(grey_HW: np.ndarray) -> float:
    """Energy of the finest details in relation to those twice as coarse: about 0.1 to 1 for a picture in its own size, below 0.06 for one
    that was enlarged to twice its size or is out of focus. 1 where there is too little to tell."""
    rows, columns = grey_HW.shape[0] // 32, grey_HW.shape[1] // 32
    blocks = grey_HW[:rows * 32, :columns * 32].reshape(rows, 32, columns, 32).transpose(0, 2, 1, 3).reshape(-1, 32, 32)
    if len(blocks) < 4:
        return 1.0
    power = np.square(DCT32 @ (blocks - blocks.mean((1, 2), keepdims=True)) @ DCT32.T)
    coarse = power[:, COARSE].sum(1)
    busy = coarse >= max(50.0, float(np.median(coarse)))
    return float(np.median(power[busy][:, FINE].sum(1) / coarse[busy])) if busy.sum() >= 4 else 1.0


def flatness(grey_HW: np.ndarray) -> float:
    """Share of pixels whose neighbours continue them exactly: most of a drawing with flat colours, next to none of a photo."""
    if min(grey_HW.shape) < 3:
        return 1.0
    return float((np.abs(grey_HW[::2, 2:] - 2 * grey_HW[::2, 1:-1] + grey_HW[::2, :-2]) < 0.5).mean())


def repeated_pixels(grey_HW: np.ndarray) -> float:
    """How often every pixel stands beside and below itself, as after enlarging without smoothing, also by factors such as 2.5; else 1."""
    factors = [_repeats(values) for values in (grey_HW, grey_HW.T)]
    return min(factors) if max(factors) < 1.5 * min(factors) else 1.0


def _repeats(grey_HW: np.ndarray) -> float:
    """Mean distance between the columns at which something changes, if those never are neighbours; else 1."""
    steps = np.abs(np.diff(grey_HW, axis=1)).mean(0)
    if steps.size < 16 or steps.max() < 1.0:
        return 1.0
    places = np.nonzero(steps > 0.02 * np.quantile(steps, 0.95))[0]
    gaps = np.diff(places)
    if len(gaps) < FEWEST_CHANGES or (gaps == 1).mean() > 0.02:
        return 1.0
    near = gaps[gaps <= 8]
    return float(near.mean()) if len(near) >= FEWEST_CHANGES else 1.0


def bars(rgb_HW3: np.ndarray) -> dict[str, float]:
    """Share of height or width that a bar of one colour takes at each side: top, bottom, left, right; 0 where there is none."""
    turned = rgb_HW3.transpose(1, 0, 2)
    found = {}
    for (first, last), view in ((("top", "bottom"), rgb_HW3), (("left", "right"), turned)):
        (a, colour_a, a_varied), (b, colour_b, b_varied) = _bar_at_the_top(view), _bar_at_the_top(view[::-1])
        # two equal bars are no pattern, even when a plain picture lies between them
        pair = a and b and abs(a - b) * len(view) <= 2.5 and np.abs(colour_a - colour_b).max() <= 8
        found[first], found[last] = (a if a_varied or pair else 0.0), (b if b_varied or pair else 0.0)
    return found


def _bar_at_the_top(rgb_HW3: np.ndarray) -> tuple[float, np.ndarray, bool]:
    """Share of rows from the top that have one and the same colour, if what follows begins along a straight line over the whole width;
    that colour; and whether what follows is a picture rather than another stripe."""
    height = len(rgb_HW3)
    colour = np.median(rgb_HW3[:max(1, height // 100)].reshape(-1, 3), axis=0).astype(np.int16)
    head = rgb_HW3[:height * 6 // 10].astype(np.int16)
    if not len(head):
        return 0.0, colour, False
    # without noise or compression a bar may be told from a background that is nearly as dark
    allowed = 5 if np.abs(head[:2] - colour).max() <= 1 else 14
    share = (_largest_difference(head, colour) > allowed).mean(1)
    plain = share < 0.02
    if not plain[0] or plain.all():
        return 0.0, colour, False
    end = int(plain.argmin())
    depth = max(2, height // 100)
    following = head[end + depth:end + depth + max(4 * depth, height // 8)]
    straight = share[end:end + depth + 1].max() > 0.8
    if not end < 0.45 * height or not len(following) or not straight or plain[end:].mean() > 0.1:
        return 0.0, colour, False
    own_colour = np.median(following, axis=1, keepdims=True)
    return end / height, colour, bool((_largest_difference(following, own_colour) > 6).mean() > 0.25)


def _largest_difference(rgb_HW3: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of the three channels, each on its own: numpy reduces an axis of three slowly."""
    red, green, blue = (np.abs(rgb_HW3[..., i] - other[..., i]) for i in range(3))
    return np.maximum(np.maximum(red, green), blue)


def perceptual_hash(grey_32: np.ndarray) -> np.ndarray:
    """64 bits of a picture shrunk to 32x32: the signs of its lowest frequencies, as in pHash, whose median is left away so that a mirrored
    picture differs in the odd columns and nowhere else."""
    low = (DCT32 @ grey_32 @ DCT32.T)[:8, :8].ravel()
    low[0] = 0
    return np.packbits(low > 0)


def missing_part(rgb_HW3: np.ndarray) -> float:
    """Share of the height that is one flat grey (128) at the bottom: what a JPEG decoder puts where a broken download ends. 0 where the grey
    lies at the top as well: it is the background then."""
    grey_HW = _largest_difference(rgb_HW3.astype(np.int16), np.array([128, 128, 128], dtype=np.int16)) <= 2
    if grey_HW[0].mean() > 0.5:
        return 0.0
    flat = grey_HW[::-1].mean(1) > 0.995
    return float(flat.argmin() if not flat.all() else len(flat)) / len(flat)
