"""Follow the codes of one scan of a JPEG (ITU-T T.81, annexes F and G), block by block, without computing a pixel."""

import numpy as np
from numpy.typing import NDArray

from . import BadImage
from .codes import LAST, STOP, Lookup, Portions, build_code_table, build_mean_table, build_rest_table
from .frames import Component, Frame, Scan

MAX_MEAN = 1024  # of a block, less 128 and times 8
OVERSHOOT = 256  # some encoders put white above 255 beside edges, in brightness alone


def check_scan(frame: Frame, scan: Scan) -> None:
    parts = [frame.components[name] for name in scan.components]
    alone = len(parts) == 1
    total = parts[0].blocks[0] * parts[0].blocks[1] if alone else frame.mcus
    step = frame.restart or total
    if len(scan.segments) != -(-total // step):
        raise BadImage("damaged (restart markers of the JPEG are missing or too many)")
    for name in scan.components:
        missing = frame.precision[name]
        if any(bits != (scan.high if scan.high else 99) for bits in missing[scan.first : scan.last + 1]):
            raise ValueError("a part that is given twice, or refined before it is given")
        missing[scan.first : scan.last + 1] = [scan.low] * (scan.last + 1 - scan.first)
    counts = [min(step, total - done) for done in range(0, total, step)]
    if scan.first:
        _follow_band(frame, scan, counts)
    elif scan.high:  # one more bit of each mean
        each = 1 if alone else sum(part.horizontal * part.vertical for part in parts)
        for (start, end), count in zip(scan.segments, counts, strict=True):
            _check_end(start + each * count, end)
    else:
        _follow_means(frame, scan, parts, counts)


def _check_end(at: int, end: int) -> None:
    if at > end:
        raise BadImage("damaged (the compressed data of the JPEG ends before its last block)")
    if end - at >= 8:
        raise BadImage("damaged (compressed data of the JPEG is left over after its last block)")


def _follow_means(frame: Frame, scan: Scan, parts: list[Component], counts: list[int]) -> None:
    """Follow a baseline scan, or the first scan of the means of a progressive one."""
    order: list[int] = []
    for place, part in enumerate(parts):
        order += [place] * (1 if len(parts) == 1 else part.horizontal * part.vertical)
    means = [build_mean_table(*frame.codes[table >> 4]) for table in scan.tables]
    rests = [None if frame.progressive else build_rest_table(*frame.codes[16 | (table & 15)]) for table in scan.tables]
    portions = Portions(scan)
    starts: list[int] = []
    passed: list[int] = []
    found: list[NDArray[np.int64]] = []
    tables: list[tuple[bytes, bytes, bytes]] = []
    for (at, end), left in zip(scan.segments, counts, strict=True):
        while left:
            if at >= portions.stop:
                found.append(_read_means(portions, starts, order, means))
                starts.clear()
                portions.move(at)
                tables = _look_up(portions, means, rests, order)
            if at >= end:
                _check_end(end + 1, end)
            here, stop = at - portions.base, min(portions.stop, end) - portions.base
            here, left = _walk(tables, starts, passed, here, stop, left)
            at = here + portions.base
        _check_end(at, end)
    found.append(_read_means(portions, starts, order, means))
    ended = np.array(passed)
    if ((ended > 64) & ((ended < LAST + 1) | (ended > LAST + 63))).any():
        raise BadImage("damaged (a block of the JPEG has more than 64 coefficients or no valid code)")
    _check_means(frame, scan, parts, counts, order, np.concatenate(found))


def _walk(
    tables: list[tuple[bytes, bytes, bytes]], starts: list[int], passed: list[int], here: int, stop: int, left: int
) -> tuple[int, int]:
    """Follow up to `left` MCUs from the bit `here` to `stop`; note where blocks start and how many coefficients passed.

    This loop takes most of the time of a check: two look-ups for each code.
    """
    while left and here < stop:
        left -= 1
        for mean, bits, steps in tables:
            starts.append(here)
            here += mean[here]
            k = 1
            while k < 64:
                k += steps[here]
                here += bits[here]
            passed.append(k)
    return here, left


def _look_up(portions: Portions, means: list, rests: list, order: list[int]) -> list[tuple[bytes, bytes, bytes]]:
    """Return, for each block of an MCU, the entries of its tables at every bit."""
    mean = {id(table): portions.look_up(table[0], 0) for table in means}  # components may share tables
    rest = {id(table): (portions.look_up(table[0], 0), portions.look_up(table[1], STOP)) for table in rests if table}
    size = len(portions.windows)
    rest[id(None)] = b"\0" * size, bytes([LAST]) * size  # the scan holds means only: nothing to pass
    return [(mean[id(means[place])], *rest[id(rests[place])]) for place in order]


def _read_means(
    portions: Portions, starts: list[int], order: list[int], means: list[tuple[Lookup, Lookup, Lookup]]
) -> NDArray[np.int64]:
    """Return the differences of the means whose codes are at `starts`."""
    if not starts:
        return np.zeros(0, np.int64)
    at = np.array(starts)
    which = np.resize(np.array(order), len(at))
    lengths, sizes = np.zeros(len(at), np.int64), np.zeros(len(at), np.int64)
    for place, (_, length, size) in enumerate(means):
        chosen = which == place
        window = portions.windows[at[chosen]]
        lengths[chosen], sizes[chosen] = length[window], size[window]
    if not lengths.all():
        raise BadImage("damaged (no valid code in the JPEG)")
    bits = portions.windows[np.minimum(at + lengths, len(portions.windows) - 1)] >> (16 - sizes)
    return np.where((sizes > 0) & (bits < 1 << np.maximum(sizes - 1, 0)), bits - (1 << sizes) + 1, bits)


def _check_means(
    frame: Frame, scan: Scan, parts: list[Component], counts: list[int], order: list[int], means: NDArray[np.int64]
) -> None:
    """Raise BadImage if the mean of a block is far outside the range of 8-bit pixels."""
    segment = np.repeat(np.arange(len(counts)), np.array(counts) * len(order))
    which = np.resize(np.array(order), len(means))
    first_part = next(iter(frame.components.values()))
    for place, part in enumerate(parts):
        own, where = means[which == place], segment[which == place]
        sums = np.cumsum(own)
        first = np.searchsorted(where, np.arange(len(counts)))  # the sums begin at 0 in each segment
        sums -= (sums - own)[first][where]
        scale = frame.quantization[part.quantization]
        sums = (sums << scan.low) * scale
        slack = scale << scan.low
        top = MAX_MEAN + slack + (OVERSHOOT if part is first_part or len(frame.components) != 3 else 0)
        if sums.min() < -MAX_MEAN - slack or sums.max() > top:
            raise BadImage("damaged (a block of the JPEG is brighter than white or darker than black)")


def _follow_band(frame: Frame, scan: Scan, counts: list[int]) -> None:
    """Follow a progressive scan of the coefficients first..last of one component."""
    name = scan.components[0]
    rows, columns = frame.components[name].blocks
    history = frame.history.setdefault(name, [0] * (rows * columns))
    lengths, symbols = build_code_table(*frame.codes[16 | (scan.tables[0] & 15)])
    portions, block = Portions(scan), 0
    codes = values = b""
    for (at, end), count in zip(scan.segments, counts, strict=True):
        blocks, run = range(block, block + count), 0
        block += count
        for i in blocks:
            if at >= portions.stop and at < end:
                portions.move(at)
                codes, values = portions.look_up(lengths, 0), portions.look_up(symbols, 0)
            if run and not history[i]:
                run -= 1
                continue
            if at >= end and not run:
                _check_end(end + 1, end)
            here = at - portions.base
            follow = _refine_block if scan.high else _follow_block
            here, run, history[i] = follow(scan, portions, codes, values, here, run, history[i])
            at = here + portions.base
        if run:
            raise BadImage("damaged (a run of empty blocks in the JPEG goes past the last one)")
        _check_end(at, end)


def _read_run(portions: Portions, here: int, size: int) -> int:
    """Return the number of blocks whose band ends here, this one included."""
    return (1 << size) + (int(portions.windows[here]) >> (16 - size) if size else 0)


def _follow_block(
    scan: Scan, portions: Portions, codes: bytes, values: bytes, here: int, run: int, known: int
) -> tuple[int, int, int]:
    """Follow the first scan of a block's band; return the place, the run of empty blocks left, and its history."""
    if run:
        return here, run - 1, known
    k = scan.first
    while k <= scan.last:
        length, symbol = codes[here], values[here]
        skip, size = symbol >> 4, symbol & 15
        if not length or size > 10:
            raise BadImage("damaged (no valid code in the JPEG)")
        here += length
        if not size and skip < 15:
            return here + skip, _read_run(portions, here, skip) - 1, known
        k += skip
        if k > scan.last:
            raise BadImage("damaged (a block of the JPEG has too many coefficients)")
        if size:
            known |= 1 << k
        here += size
        k += 1
    return here, 0, known


def _refine_block(
    scan: Scan, portions: Portions, codes: bytes, values: bytes, here: int, run: int, known: int
) -> tuple[int, int, int]:
    """Follow one more bit of a block's band: one for each coefficient that is nonzero already, and new ones."""
    band = known & ((2 << scan.last) - 1)
    k, grown = scan.first, known
    while not run and k <= scan.last:
        length, symbol = codes[here], values[here]
        skip, size = symbol >> 4, symbol & 15
        if not length or size > 1:
            raise BadImage("damaged (no valid code in the JPEG)")
        here += length
        if not size and skip < 15:
            run = _read_run(portions, here, skip)
            here += skip
            break
        here += size  # its sign
        while k <= scan.last:
            if band >> k & 1:
                here += 1
            elif skip:
                skip -= 1
            else:
                break
            k += 1
        if size and k > scan.last:
            raise BadImage("damaged (a block of the JPEG has too many coefficients)")
        grown |= size << k
        k += 1
    if run:
        return here + (band >> k).bit_count(), run - 1, grown
    return here, 0, grown
