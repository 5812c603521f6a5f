"""Draws the program's icon: a path of steps through candidates. Standard library only."""

import struct
import zlib


def inside_rounded(x, y, radius=0.22, inset=0.04):
    low, high = inset, 1 - inset
    if not (low <= x <= high and low <= y <= high):
        return False
    cx = min(max(x, low + radius), high - radius)
    cy = min(max(y, low + radius), high - radius)
    return (x - cx) ** 2 + (y - cy) ** 2 <= radius**2


def near_segment(x, y, a, b, width):
    (ax, ay), (bx, by) = a, b
    t = ((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / ((bx - ax) ** 2 + (by - ay) ** 2)
    t = min(max(t, 0), 1)
    return (x - ax - t * (bx - ax)) ** 2 + (y - ay - t * (by - ay)) ** 2 <= width**2


ROOT, LEFT, RIGHT, NEXT, END = (0.25, 0.5), (0.5, 0.26), (0.5, 0.68), (0.76, 0.5), (0.76, 0.84)


def colour(x, y):
    if not inside_rounded(x, y):
        return (0, 0, 0, 0)
    base = (24 + int(18 * y), 78 - int(18 * y), 99 + int(20 * x), 255)
    for node, radius in ((ROOT, 0.085), (RIGHT, 0.085), (NEXT, 0.105)):
        if (x - node[0]) ** 2 + (y - node[1]) ** 2 <= radius**2:
            return (255, 196, 92, 255) if node is NEXT else (255, 255, 255, 255)
    if (x - LEFT[0]) ** 2 + (y - LEFT[1]) ** 2 <= 0.07**2:
        return (132, 184, 196, 255)
    if near_segment(x, y, ROOT, RIGHT, 0.026) or near_segment(x, y, RIGHT, NEXT, 0.026):
        return (255, 255, 255, 255)
    if near_segment(x, y, ROOT, LEFT, 0.018):
        return (132, 184, 196, 255)
    return base


def draw(size, path, grid=4):
    rows = []
    for py in range(size):
        row = bytearray(b"\0")
        for px in range(size):
            total = [0, 0, 0, 0]
            for sy in range(grid):
                for sx in range(grid):
                    r, g, b, a = colour((px + (sx + 0.5) / grid) / size, (py + (sy + 0.5) / grid) / size)
                    total = [total[0] + r * a, total[1] + g * a, total[2] + b * a, total[3] + a]
            alpha = total[3]
            row += bytes([total[i] // alpha if alpha else 0 for i in range(3)] + [alpha // grid**2])
        rows.append(bytes(row))

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    with open(path, "wb") as out:
        out.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", size, size, 8, 6, 0, 0, 0)))
        out.write(chunk(b"IDAT", zlib.compress(b"".join(rows), 9)) + chunk(b"IEND", b""))


for size, name in ((32, "32x32"), (128, "128x128"), (256, "128x128@2x"), (256, "icon")):
    draw(size, f"{__file__.rsplit('/', 1)[0]}/{name}.png")
