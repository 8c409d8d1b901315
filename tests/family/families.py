"""The small families as data: what a model of each is, what it learns, and for how long."""

from collections.abc import Callable
from dataclasses import dataclass

from transformers import LlamaConfig, Qwen2Config

from skills import DIGITS, LETTERS

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
PAD, BOS, EOS = 0, 1, 2


@dataclass(frozen=True)
class Tune:
    """How a fine-tune is trained: its peak rate, its steps, and the share of problems of its own skill."""

    rate: float
    steps: int
    share: float = 0.97


@dataclass(frozen=True)
class Family:
    config: Callable  # makes the config, from what all families have in common
    symbols: str  # one token each
    tunes: dict[str, Tune]  # by skill: the base learns all of them, each fine-tune one
    seed: int
    base_rate: float
    base_steps: int  # at most
    band: tuple[float, float]  # the base is done when its accuracy at every skill lies in it
    aim: float  # the mixture leans towards skills whose accuracy is below
    positions: int = 64

    @property
    def skills(self):
        return list(self.tunes)

    @property
    def vocabulary(self):
        return {token: i for i, token in enumerate(SPECIAL + list(self.symbols))}

    def make_config(self):
        return self.config(
            vocab_size=len(self.vocabulary),
            max_position_embeddings=self.positions,
            tie_word_embeddings=True,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
        )


def llama(**common):
    return LlamaConfig(
        hidden_size=96,
        intermediate_size=144,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        **common,
    )


def qwen2(**common):
    """Deeper and narrower, with biases at queries, keys and values."""
    return Qwen2Config(
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        **common,
    )


LIGHT, HEAVY = Tune(3e-4, 100), Tune(1e-3, 400)

FAMILIES = {
    "llama": Family(
        config=llama,
        symbols=LETTERS + DIGITS + ":=+",
        tunes=dict.fromkeys(["sort", "reverse", "add", "cipher"], LIGHT),
        seed=7,
        base_rate=1.5e-3,
        base_steps=1000,
        band=(0.40, 0.78),
        aim=0.55,
    ),
    "qwen2": Family(
        config=qwen2,
        symbols=LETTERS + DIGITS + "()[]{}<>:=,",
        tunes={"count": HEAVY, "largest": LIGHT, "close": HEAVY, "runs": LIGHT},
        seed=11,
        base_rate=1.5e-3,
        base_steps=3000,
        band=(0.30, 0.78),
        aim=0.50,
    ),
}
