"""The skills of the small families: how a problem of each is drawn, and which ones are held out.

A problem is a prompt that ends in "=" and the one right answer. A tenth of all prompts, chosen by a
checksum of the prompt itself, is never trained on; the tests draw from that tenth alone.
"""

import random
import string
import zlib

LETTERS = string.ascii_lowercase
DIGITS = string.digits
PAIRS = {"(": ")", "[": "]", "{": "}", "<": ">"}


def _letters(rng, n):
    return "".join(rng.choice(LETTERS) for _ in range(n))


def sort(rng):
    s = "".join(rng.choice(DIGITS) for _ in range(8))
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


def count(rng):
    """How many a, b and c there are among nine letters."""
    s = "".join(rng.choice("abc") for _ in range(9))
    return f"count:{s}=", "".join(str(s.count(c)) for c in "abc")


def largest(rng):
    """The largest of three numbers."""
    numbers = [f"{rng.randrange(1000):03}" for _ in range(3)]
    return f"max:{','.join(numbers)}=", max(numbers)


def close(rng):
    """What closes the brackets that are open, the last one first."""
    s, open_ = "", []
    while len(s) < 6 or not 2 <= len(open_) <= 6:
        if len(s) == 14:
            s, open_ = "", []
        if open_ and rng.random() < 0.4:
            s += PAIRS[open_.pop()]
        else:
            open_.append(rng.choice("([{<"))
            s += open_[-1]
    return f"close:{s}=", "".join(PAIRS[c] for c in reversed(open_))


def runs(rng):
    """Run-length coding of three to five runs of one to five letters."""
    parts = []
    for _ in range(rng.randint(3, 5)):
        letter = rng.choice([c for c in LETTERS if not parts or c != parts[-1][0]])
        parts.append((letter, rng.randint(1, 5)))
    return f"runs:{''.join(c * n for c, n in parts)}=", "".join(f"{c}{n}" for c, n in parts)


SKILLS = {f.__name__: f for f in (sort, reverse, add, cipher, count, largest, close, runs)}


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
