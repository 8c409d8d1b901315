"""The four skills of the small family: how a problem of each is drawn, and which ones are held out.

A problem is a prompt that ends in "=" and the one right answer. A tenth of all prompts, chosen by a
checksum of the prompt itself, is never trained on; the tests draw from that tenth alone.
"""

import random
import string
import zlib

LETTERS = string.ascii_lowercase
SYMBOLS = LETTERS + string.digits + ":=+"


def _letters(rng, n):
    return "".join(rng.choice(LETTERS) for _ in range(n))


def sort(rng):
    s = "".join(rng.choice(string.digits) for _ in range(8))
    return f"sort:{s}=", "".join(sorted(s))


def reverse(rng):
    s = _letters(rng, rng.randint(7, 12))
    return f"rev:{s}=", s[::-1]


def add(rng):
    a, b = rng.randrange(100), rng.randrange(100)
    return f"add:{a:02}+{b:02}=", f"{a + b:03}"


def cipher(rng):
    s, shift = _letters(rng, 4), rng.randint(1, 9)
    return f"rot{shift}:{s}=", "".join(LETTERS[(LETTERS.index(c) + shift) % 26] for c in s)


SKILLS = {"sort": sort, "reverse": reverse, "add": add, "cipher": cipher}


def held_out(prompt):
    return zlib.crc32(prompt.encode()) % 10 == 0


def draw(skill, rng):
    """One problem to train on."""
    while True:
        prompt, answer = SKILLS[skill](rng)
        if not held_out(prompt):
            return prompt, answer


def test_set(skill, count, seed):
    """`count` different held-out problems, always the same ones for a seed."""
    rng, problems = random.Random(f"{seed}/{skill}"), {}
    while len(problems) < count:
        prompt, answer = SKILLS[skill](rng)
        if held_out(prompt):
            problems[prompt] = answer
    return list(problems.items())
