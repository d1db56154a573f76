"""A second opinion on the compressed data of a baseline JPEG: T.81, read one bit at a time as it is written."""

import re


class Damage(Exception):
    pass


class Bits:
    def __init__(self, data: bytes):
        self.bits = "".join(f"{byte:08b}" for byte in data.replace(b"\xff\x00", b"\xff"))
        self.at = 0

    def take(self, num: int) -> int:
        if self.at + num > len(self.bits):
            raise Damage("late")
        self.at += num
        return int("0" + self.bits[self.at - num : self.at], 2)

    def symbol(self, table: dict[str, int]) -> int:
        for length in range(1, 17):
            code = self.bits[self.at : self.at + length]
            if len(code) == length and code in table:
                self.at += length
                return table[code]
        raise Damage("no code")


def code_table(counts: bytes, symbols: bytes) -> dict[str, int]:
    table, code, place = {}, 0, 0
    for length, count in enumerate(counts, 1):
        for _ in range(count):
            table[f"{code:0{length}b}"] = symbols[place]
            code, place = code + 1, place + 1
        code *= 2
    return table


def is_sound(data: bytes) -> bool:
    """Whether every block has its 64 coefficients, no mean leaves its range, and each part ends with its last block."""
    try:
        read(data)
    except Damage:
        return False
    return True


def read(data: bytes) -> None:
    at, restart, tables, scales = 2, 0, {}, {}
    while data[at + 1] != 0xDA:
        kind, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + length]
        at += 2 + length
        if kind == 0xC0:
            height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
            parts = [(body[i], body[i + 1] >> 4, body[i + 1] & 15, body[i + 2]) for i in range(6, 6 + 3 * body[5], 3)]
        elif kind == 0xDD:
            restart = int.from_bytes(body, "big")
        elif kind == 0xDB:
            scales |= {body[i]: body[i + 1] for i in range(0, len(body), 65)}
        while kind == 0xC4 and body:
            num = sum(body[1:17])
            tables[body[0]] = code_table(body[1:17], body[17 : 17 + num])
            body = body[17 + num :]
    body = data[at + 4 :]
    chosen = {body[i]: body[i + 1] for i in range(1, 1 + 2 * body[0], 2)}
    if len(parts) == 1:
        parts = [(parts[0][0], 1, 1, parts[0][3])]
    wide, tall = max(p[1] for p in parts), max(p[2] for p in parts)
    total = -(-width // (8 * wide)) * -(-height // (8 * tall))
    pieces = re.split(rb"\xff[\xd0-\xd7]", data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") : -2])
    step = restart or total
    if len(pieces) != -(-total // step) or re.search(rb"\xff[^\x00\xd0-\xd7]", b"".join(pieces)):
        raise Damage("markers")
    for number, piece in enumerate(pieces):
        bits, means = Bits(piece), {p[0]: 0 for p in parts}
        for _ in range(min(step, total - number * step)):
            for name, across, down, scale in parts:
                for _ in range(across * down):
                    means[name] += block(bits, tables[chosen[name] >> 4], tables[16 | chosen[name] & 15])
                    bound = 1024 + scales[scale]
                    over = 256 if name == parts[0][0] else 0
                    if not -bound <= means[name] * scales[scale] <= bound + over:
                        raise Damage("range")
        if len(bits.bits) - bits.at >= 8:
            raise Damage("early")


def block(bits: Bits, mean: dict[str, int], rest: dict[str, int]) -> int:
    size = bits.symbol(mean)
    value = bits.take(size)
    difference = value if not size or value >> (size - 1) else value - (1 << size) + 1
    k = 1
    while k < 64:
        run, size = divmod(bits.symbol(rest), 16)
        if size == 0 and run == 0:
            break
        if size > 10 or (size == 0 and run < 15):
            raise Damage("symbol")
        k += run + 1
        bits.take(size)
        if k > 64:
            raise Damage("overflow")
    return difference
