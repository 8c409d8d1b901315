"""Merges, restacks and loads a tiny model of every model type that the installed transformers can build.

    python3 -m venv target/envs/newest && target/envs/newest/bin/pip install torch transformers
    target/envs/newest/bin/python tests/peer/architectures.py --weld target/debug/weld --work target/architectures
    ... --only llama,gemma3,bart        # a part
    ... --table docs/robustness.md      # write the table there

Of each type: a base and two fine-tunes are saved by transformers. `weld check` looks at the inputs. Then `weld` makes

- `linear`: 0.3 of one and 0.7 of the other;
- `dare_ties`: each element is the base plus a subset of its weighted updates, of one sign;
- `restack`: all layers of one but the last, then all of the other but the first (passthrough; of two layers, also the
  last); of a model with several stacks, the text decoder is stacked anew and the rest is copied.

Every stored tensor must be right, transformers must load the output with no key missing, unexpected or of another
shape that the input does not lack too, what it loaded must be what is stored, and `weld check` must find nothing above a
note. Config fields are shrunk by their names (RULES); a type that cannot be built so is not tried, and counted.
"""

import argparse
import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
warnings.filterwarnings("ignore")

import torch
import transformers as tf
from safetensors.torch import load_file
from transformers.models.auto import configuration_auto, modeling_auto

tf.utils.logging.set_verbosity_error()
tf.utils.logging.disable_progress_bar()

LAYERS = 4
VOCAB = 128
# More elements than this, and a model is not tiny.
MOST = 20_000_000

# The classes of a type, in the order in which one is chosen.
TASKS = [
    "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM", "SPEECH_SEQ_2_SEQ", "SEQ_TO_SEQ_CAUSAL_LM", "MASKED_LM", "CAUSAL_LM",
    "PRETRAINING", "IMAGE_CLASSIFICATION", "AUDIO_CLASSIFICATION", "CTC", "OBJECT_DETECTION", "SEMANTIC_SEGMENTATION",
    "UNIVERSAL_SEGMENTATION", "DEPTH_ESTIMATION", "SEQUENCE_CLASSIFICATION", "TEXT_TO_WAVEFORM",
    "TEXT_TO_SPECTROGRAM", "TIME_SERIES_PREDICTION", "",
]

# What a field of a config becomes: a pattern of its name, and a number. The first that fits decides.
RULES = [
    (r"^(num_hidden_layers|n_layers?|num_layers|encoder_layers|decoder_layers|num_blocks|depth|num_encoder_layers"
     r"|num_decoder_layers|n_encoder_layers|n_decoder_layers|num_encoder_blocks_total|attention_layers_count)$", LAYERS),
    (r"^(num_nextn_predict_layers|num_mtp_layers|num_predict_layers)$", 1),
    (r"^(first_k_dense_replace|moe_layer_start_index)$", 1),
    (r"^moe_layer_end_index$", -1),
    (r"(num_key_value_heads|num_kv_heads|n_head_kv|num_key_value_groups|key_value_heads|kv_n_heads)$", 2),
    (r"(num_attention_heads|num_heads|n_heads?|attention_heads|num_attn_heads|mamba_n_heads|n_mamba_heads"
     r"|linear_num_\w+_heads)$", 4),
    (r"^(qk_nope_head_dim|qk_rope_head_dim|v_head_dim|head_dim|global_head_dim|attention_head_dim|d_kv|key_dim"
     r"|value_dim|mamba_d_head|mamba_head_dim|linear_\w+_head_dim|attention_key_size|kv_channels)$", 8),
    (r"^qk_head_dim$", 16),
    (r"(q_lora_rank|kv_lora_rank|lora_rank|dt_rank|time_step_rank|o_lora_rank)$", 16),
    (r"(num_experts_per_tok|num_experts_per_token|experts_per_token|moe_k|moe_topk|moe_top_k|top_k_experts|num_selected_experts)$", 2),
    (r"(num_experts|num_local_experts|n_routed_experts|moe_num_experts|num_routed_experts|n_experts)$", 4),
    (r"^(n_group|topk_group|num_expert_groups?|n_shared_experts|num_shared_experts|moe_num_shared_experts)$", 1),
    (r"(vocab_size|num_embeddings|codebook_size|vocab_size_per_layer_input|image_vocab_size|n_vocab)$", VOCAB),
    (r"(max_position_embeddings|n_positions|max_seq_len|max_source_positions|max_target_positions|seq_length"
     r"|max_sequence_length|n_ctx|max_length|sliding_window|window_size|local_attention)$", 64),
    (r"^(image_size|img_size|input_size)$", 32),
    (r"^patch_size$", 8),
    (r"(intermediate_size|ffn_dim|ffn_hidden_size|d_ff|d_inner|n_inner|mlp_dim|dim_ff|shared_expert_intermediate_size"
     r"|moe_intermediate_size|feedforward_dim|mlp_hidden_size|block_ff_dim|encoder_ffn_dim|ffn_size)$", 48),
    (r"^(state_size|ssm_state_size|mamba_d_state|d_state)$", 8),
    (r"(hidden_size|hidden_dim|d_model|n_embd|embed_dim|embedding_size|emb_dim|model_dim|projection_dim|lru_width|n_embed"
     r"|width|hidden_sizes?_per_layer_input|dim|out_dim|embed_size|feature_size|channels|encoder_dim|decoder_dim"
     r"|fpn_feature_size|mask_feature_size|conv_dim|output_dim|input_dim|in_dim|latent_dim|cross_attention_dim"
     r"|hidden_channels|out_channels|embedding_dim|visual_feat_dim|proj_dim|inner_dim)$", 32),
]

# Fields that a class does not have by default, or that the rules do not fit, by model type.
SPECIAL = {
    "autoformer": {"prediction_length": 4},
    "bamba": {"mamba_d_head": 16},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1},
    "esm": {"vocab_size": 33, "mask_token_id": 32, "pad_token_id": 1},
    "gemma3n_text": {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"mamba_d_head": 16},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "num_experts": 4, "moe_topk": 2},
    "informer": {"prediction_length": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
}


def variants():
    """All rules; with as many heads of keys as of queries; only those of layers, vocabularies and widths of MLPs."""
    yield RULES
    yield [(pattern, 4 if "key_value" in pattern else small) for pattern, small in RULES]
    yield [rule for rule in RULES if re.search("layers|vocab|intermediate_size", rule[0])]


# A part of other models' configs, which no class takes alone.
NO_CLASS = "no class for it"


class NotBuilt(Exception):
    """Why no tiny model of a type can be made."""


def shrunk(name, value, rules):
    """The tiny value of a field."""
    if name.endswith(("token_id", "token_ids", "token_index")):
        if isinstance(value, list):
            return [shrunk(name, item, rules) for item in value]
        if isinstance(value, int) and not 0 <= value < VOCAB // 2:
            return VOCAB // 2 + sum(map(ord, name)) % (VOCAB // 2)
        return value
    if name == "depths" and isinstance(value, list):
        return [min(depth, 2) for depth in value]
    if isinstance(value, list) and re.search("hidden_sizes|embed_dims|channels|_dims|out_features_sizes", name):
        sizes = all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in value)
        return [size * 32 // min(value) for size in value] if sizes and value and min(value) > 32 else value
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    for pattern, small in rules:
        if re.search(pattern, name):
            return min(small, value) if value > 0 else value
    return value


def tiny(config_class, rules, special, depth=0):
    """A config of a class with every size small."""
    config = config_class()
    parts = getattr(config_class, "sub_configs", {})
    fields = {}
    layers = next((value for key, value in config.to_dict().items() if re.search(RULES[0][0], key)), None)
    for name, value in config.to_dict().items():
        if name in parts and isinstance(getattr(config, name, None), tf.PretrainedConfig) and depth < 3:
            fields[name] = tiny(type(getattr(config, name)), rules, {}, depth + 1).to_dict()
            continue
        if isinstance(value, list) and value and isinstance(layers, int) and len(value) == layers > LAYERS:
            continue  # An entry for each layer: the class makes it anew.
        small = shrunk(name, value, rules)
        if small != value:
            fields[name] = small
    return config_class(**fields | special)


def model_class(kind):
    """The class to be tried for a type."""
    for task in TASKS:
        mapping = getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES" if task not in ("", "PRETRAINING")
                          else "MODEL_MAPPING_NAMES" if not task else "MODEL_FOR_PRETRAINING_MAPPING_NAMES", {})
        if kind in mapping:
            names = mapping[kind]
            found = getattr(tf, names if isinstance(names, str) else names[0], None)
            if found is not None:
                return found
    raise NotBuilt(NO_CLASS)


def build(kind):
    """A tiny model of a type."""
    config_class = configuration_auto.CONFIG_MAPPING[kind]
    cls = model_class(kind)
    if cls.config_class is not None and not issubclass(config_class, cls.config_class):
        config_class = cls.config_class
    problem = None
    for rules in variants():
        try:
            config = tiny(config_class, rules, SPECIAL.get(kind, {}))
            with torch.device("meta"):
                elements = sum(weight.numel() for weight in cls(config).parameters())
            if elements > MOST:
                raise NotBuilt(f"{elements} elements")
            torch.manual_seed(0)
            return cls(config).eval()
        except Exception as error:
            problem = problem or f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    raise NotBuilt(problem)


def save(model, folder, seed):
    """Writes a model; with a seed, its weights moved a little first."""
    if seed:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.is_floating_point():
                    weight.add_(torch.randn(weight.shape, generator=generator, dtype=torch.float32) * 0.02)
    model.save_pretrained(folder)


def stored(folder):
    """All tensors of a folder."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def loaded(cls, folder):
    """The state that transformers makes of a folder, and the keys of which it complains."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        model, info = cls.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    complaints = {name: {str(key) for key in info.get(name, ())}
                  for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    return {name: value.clone() for name, value in model.state_dict().items()}, complaints, model.config


class Trial:
    """One type: its models in a folder, and what weld makes of them."""

    def __init__(self, kind, weld, folder):
        self.kind, self.weld, self.folder = kind, weld, folder
        self.row = {"type": kind}

    def run(self, *arguments):
        environment = dict(os.environ, HF_HOME=str(self.folder / "no-hub"))
        command = [self.weld, *arguments]
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300)

    def check(self, name):
        """What `weld check` finds above a note."""
        done = self.run("check", name, "--format", "json", "--quiet")
        if done.returncode not in (0, 1):
            return [f"exit {done.returncode}: {done.stderr[:300]}"]
        findings = json.loads(done.stdout)["findings"]
        shown = (f"{found['severity']} {found['check']}: {found.get('tensor') or found.get('field') or found.get('file')}:"
                 f" expected {found['expected']}, found {found['found']}"[:240] for found in findings
                 if found["severity"] != "note")
        return sorted(set(shown))

    def merge(self, name, recipe):
        """Merges, and says why not if it is refused."""
        (self.folder / f"{name}.yml").write_text(recipe)
        done = self.run("merge", f"{name}.yml", name, "--quiet", "--threads", "1")
        if done.returncode == 0:
            return None
        kind = "refused" if done.returncode == 1 else f"WRONG: exit {done.returncode}"
        return f"{kind}: {' '.join(done.stderr.split())[:700]}"

    def all(self):
        model = build(self.kind)
        cls = type(model)
        self.row["class"] = cls.__name__
        self.row["elements"] = sum(weight.numel() for weight in model.parameters())
        base_state = {name: value.clone() for name, value in model.state_dict().items()}
        for name, seed in [("base", 0), ("a", 1), ("b", 2)]:
            model.load_state_dict(base_state)
            save(model, self.folder / name, seed)
        del model
        try:
            self.inputs = {name: loaded(cls, self.folder / name) for name in ("base", "a", "b")}
        except Exception as error:
            raise NotBuilt(f"transformers does not load what it saved: {type(error).__name__}: {error}") from error
        self.stored = {name: stored(self.folder / name) for name in ("base", "a", "b")}
        self.row["tensors"] = len(self.stored["a"])
        self.row["check inputs"] = self.check("a")
        for name, recipe, right in [
            ("linear", LINEAR, self.linear), ("dare_ties", DARE_TIES, self.dare_ties), ("restack", None, self.restack)
        ]:
            recipe = recipe or self.slices()
            if recipe is None:
                self.row[name] = "no stack of layers"
                continue
            problem = self.merge(name, recipe)
            if name == "restack" and problem and "several stacks" in problem:
                problem = self.merge(name, self.towers() or recipe)
            if problem is None:
                problem = self.judge(name, cls, right)
            self.row[name] = problem or "right"
            if (self.folder / name).exists():
                self.row[f"check {name}"] = self.check(name)

    def judge(self, name, cls, right):
        """What is wrong with an output, if anything is."""
        folder = self.folder / name
        tensors = stored(folder)
        problems = right(tensors)
        try:
            state, complaints, config = loaded(cls, folder)
        except Exception as error:
            text = " ".join(str(error).split())[:400]
            return "; ".join(["WRONG: transformers does not load it: " + f"{type(error).__name__}: {text}", *problems[:3]])
        for key, names in complaints.items():
            more = names - self.inputs["a"][1][key]
            if more and not (name == "restack" and key == "missing_keys" and self.known_missing(more)):
                problems.append(f"{key}: {sorted(more)[:6]}")
        if name == "linear":
            problems += self.same_state(state)
        return "WRONG: " + "; ".join(problems[:6]) if problems else None

    def known_missing(self, names):
        """Whether keys of a deeper stack are missing as those of the input's layers are."""
        plain = {re.sub(r"\d+", "#", name) for name in self.inputs["a"][1]["missing_keys"]}
        return all(re.sub(r"\d+", "#", name) in plain for name in names)

    def same_state(self, state):
        """Where what transformers loaded from a linear merge is not the merge of what it loaded from the models."""
        a, b = self.inputs["a"][0], self.inputs["b"][0]
        skip = set().union(*self.inputs["a"][1].values())
        wrong = []
        for name, value in state.items():
            if name in skip or not value.is_floating_point():
                continue
            expected = 0.3 * a[name].double() + 0.7 * b[name].double()
            if value.shape != expected.shape or not close(value, expected):
                wrong.append(f"loaded {name} is not the merge")
        return wrong

    def linear(self, tensors):
        a, b = self.stored["a"], self.stored["b"]
        problems = same_names(tensors, a)
        for name in tensors.keys() & a.keys():
            if not a[name].is_floating_point():
                right = torch.equal(tensors[name], a[name])
            else:
                right = close(tensors[name], 0.3 * a[name].double() + 0.7 * b[name].double())
            if not right:
                problems.append(f"{name} is not the weighted mean")
        return problems

    def dare_ties(self, tensors):
        base, a, b = (self.stored[name] for name in ("base", "a", "b"))
        problems = same_names(tensors, a)
        dropped = total = 0
        for name in tensors.keys() & a.keys():
            if not a[name].is_floating_point():
                continue
            start = base[name].double()
            first, second = 0.6 * (a[name].double() - start), 0.5 * (b[name].double() - start)
            value = tensors[name].double()
            agree = first * second >= 0
            fits = near(value, start + first) | near(value, start + second) | near(value, start)
            fits |= agree & near(value, start + first + second)
            fits |= torch.isinf(start) & (value == start)
            if not fits.all():
                problems.append(f"{name}: {int((~fits).sum())} elements are no subset of the updates")
            moved = first.abs() > 1e-6
            dropped += int((moved & near(value, start)).sum())
            total += int(moved.sum())
        if total > 2000 and not 0.15 < dropped / total < 0.35:
            problems.append(f"{dropped} of {total} elements kept no update; a quarter is expected")
        return problems

    def stacks(self):
        """Runs prefix.0 to prefix.n of the stored names."""
        layers = {}
        for name in self.stored["a"]:
            for match in re.finditer(r"(?<=\.)(\d+)(?=\.)|^(\d+)(?=\.)", name):
                layers.setdefault(name[: match.start()], set()).add(int(match.group()))
        return {prefix: numbers for prefix, numbers in layers.items() if numbers == set(range(len(numbers)))}

    def outer(self):
        """The stacks that lie in no other, with their depths."""
        found = {prefix: len(numbers) for prefix, numbers in self.stacks().items() if not re.search(r"\.\d+\.", prefix)}
        return {prefix: depth for prefix, depth in found.items() if depth > 1}

    def slices(self):
        """A recipe that stacks the layers anew, where there is a stack."""
        depths = set(self.outer().values())
        if not depths:
            return None
        self.depth = LAYERS if LAYERS in depths else max(depths)
        return "merge_method: passthrough\nslices:\n" + SLICES.format(end=self.first_end(), depth=self.depth)

    def first_end(self):
        """Where the first slice ends: the output must have more layers than the models."""
        return max(self.depth - 1, 2)

    def towers(self):
        """The same for one of several stacks, the text decoder's if there is one; the others are copied."""
        stacks = self.outer()
        text = [prefix for prefix in stacks if re.search("language_model|text|decoder|lm", prefix)]
        chosen = min(text or stacks, key=lambda prefix: (-stacks[prefix], len(prefix)))
        self.depth = stacks[chosen]
        others = {module(prefix, chosen) for prefix in stacks if prefix != chosen}
        recipe = "merge_method: passthrough\nmodules:\n  default:\n    slices:\n"
        recipe += SLICES.format(end=self.first_end(), depth=self.depth).replace("  - ", "      - ")
        return recipe + "".join(f"  {name}:\n    models: [{{model: ./a}}]\n" for name in sorted(others))

    def restack(self, tensors):
        """Every tensor of the new stack is its source's."""
        a, b = self.stored["a"], self.stored["b"]
        old = [(a, layer) for layer in range(self.first_end())] + [(b, layer) for layer in range(1, self.depth)]
        grown = [prefix for prefix, numbers in self.stacks().items() if len(numbers) == self.depth
                 and any(re.match(re.escape(prefix) + rf"{len(old) - 1}\.", name) for name in tensors)]
        if len(grown) != 1:
            return [f"stacks that grew: {grown}"]
        prefix, expected = grown[0], {}
        for name in a:
            match = re.match(re.escape(prefix) + r"(\d+)(\..*)", name)
            if not match:
                expected[name] = [a[name], b[name]]  # Of the first slice or of the last.
                continue
            for new, (source, layer) in enumerate(old):
                if layer == int(match.group(1)):
                    expected[f"{prefix}{new}{match.group(2)}"] = [source[name]]
        problems = same_names(tensors, {name: either[0] for name, either in expected.items()})
        for name in tensors.keys() & expected.keys():
            if not any(torch.equal(tensors[name], tensor) for tensor in expected[name]):
                problems.append(f"{name} is another layer's")
        return problems


def module(prefix, chosen):
    """The shortest part of a stack's prefix that is not one of another's."""
    parts, others = prefix.strip(".").split("."), chosen.strip(".").split(".")
    same = next((at for at, pair in enumerate(zip(parts, others)) if pair[0] != pair[1]), len(parts) - 1)
    return ".".join(parts[: same + 1])


def same_names(tensors, expected):
    problems = []
    if lost := sorted(expected.keys() - tensors.keys()):
        problems.append(f"not written: {lost[:4]}")
    if more := sorted(tensors.keys() - expected.keys()):
        problems.append(f"written and not expected: {more[:4]}")
    problems += [f"{name} has shape {tuple(tensors[name].shape)} for {tuple(expected[name].shape)}"
                 for name in tensors.keys() & expected.keys() if tensors[name].shape != expected[name].shape][:4]
    return problems


def close(value, expected):
    return value.shape == expected.shape and bool(near(value.double(), expected).all())


def near(value, expected):
    return (value == expected) | ((value - expected).abs() <= 1e-6 * (1 + expected.abs()))


LINEAR = """merge_method: linear
models:
  - model: ./a
    parameters: {weight: 0.3}
  - model: ./b
    parameters: {weight: 0.7}
"""

DARE_TIES = """merge_method: dare_ties
base_model: ./base
models:
  - model: ./a
    parameters: {weight: 0.6, density: 0.5}
  - model: ./b
    parameters: {weight: 0.5, density: 0.5}
parameters: {rescale: false, normalize: false}
"""

SLICES = """  - sources: [{{model: ./a, layer_range: [0, {end}]}}]
  - sources: [{{model: ./b, layer_range: [1, {depth}]}}]
"""


def tried(kind, arguments):
    """A type's row, made in a process of its own, which may die or hang."""
    result = arguments.work / f"{kind}.json"
    if result.exists() and not arguments.again:
        return json.loads(result.read_text())
    folder = arguments.work / "models" / kind
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    child = os.fork()
    if child == 0:
        trial = Trial(kind, str(arguments.weld.resolve()), folder)
        try:
            trial.all()
        except (NotBuilt, ImportError) as error:
            trial.row["not built"] = " ".join(str(error).split())[:200]
        except BaseException:
            trial.row["WRONG"] = traceback.format_exc(limit=4)
        trial.row["seconds"] = round(time.process_time(), 1)
        result.write_text(json.dumps(trial.row, indent=1))
        os._exit(0)
    deadline = time.time() + arguments.seconds
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.time() > deadline:
            os.kill(child, 9)
            os.waitpid(child, 0)
            result.write_text(json.dumps({"type": kind, "not built": f"took over {arguments.seconds} s"}))
            break
        time.sleep(0.02)
    if not result.exists():
        result.write_text(json.dumps({"type": kind, "not built": "the process died"}))
    row = json.loads(result.read_text())
    if not arguments.keep:
        shutil.rmtree(folder, ignore_errors=True)
    return row


def warm():
    """Imports in this process what every type's process needs, by saving and loading a few models."""
    for kind in ("llama", "bart", "clip"):
        with tempfile.TemporaryDirectory() as folder:
            model = build(kind)
            model.save_pretrained(folder)
            loaded(type(model), folder)


def kinds():
    """Every type with a config, by name."""
    return sorted(configuration_auto.CONFIG_MAPPING_NAMES)


CASES = ("linear", "dare_ties", "restack")


def summary(rows):
    """The table of what was tried, in Markdown."""
    built = [row for row in rows if "not built" not in row]
    parts = sum(row.get("not built") == NO_CLASS for row in rows)
    lines = ["| | tried | right | refused, with the reason | wrong |", "|---|---:|---:|---:|---:|"]
    for case in CASES:
        count = Counter(verdict(row, case) for row in built)
        del count["no stack"]
        total = sum(count.values())
        lines.append(f"| `{case}` | {total} | {count['right']} | {count['refused']} | {count['wrong']} |")
    for what, columns in [("inputs", ["check inputs"]), ("outputs", [f"check {case}" for case in CASES])]:
        looked = [row[column] for row in built for column in columns if column in row]
        alarms = sum(bool(found) for found in looked)
        lines.append(f"| `weld check` of {what}, nothing above a note | {len(looked)} | {len(looked) - alarms} | | {alarms} |")
    head = (f"transformers {tf.__version__} has {len(rows)} model types. {parts} are parts of others, without a class of"
            f" their own; {len(built)} could be built tiny from a shrunk config; {len(rows) - parts - len(built)} could"
            " not, or need packages or sizes that this script does not have.")
    wrong = [(case, row["type"]) for case in CASES for row in built if verdict(row, case) == "wrong"]
    for case in CASES:
        names = ", ".join(f"`{name}`" for of, name in wrong if of == case)
        if names:
            lines.append(f"\nWrong in `{case}`: {names}.")
    return "\n".join([head, "", *lines])


def verdict(row, case):
    """What a trial of a type showed: right, refused, wrong, or that there is no stack to slice."""
    text = row.get(case, "WRONG" if "WRONG" in row else "no stack")
    return next((name for name in ("right", "refused", "no stack") if text.startswith(name)), "wrong")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weld", type=Path, default=Path("target/debug/weld"))
    parser.add_argument("--work", type=Path, default=Path("target/architectures"))
    parser.add_argument("--only", help="types, with commas between")
    parser.add_argument("--every", type=int, default=1, help="only each n-th type")
    parser.add_argument("--again", action="store_true", help="try again what has a result in --work")
    parser.add_argument("--keep", action="store_true", help="leave the models in --work")
    parser.add_argument("--seconds", type=int, default=300, help="limit for a type")
    parser.add_argument("--table", type=Path, help="a page with a marked place for the table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work = arguments.work.resolve()
    arguments.work.mkdir(parents=True, exist_ok=True)
    chosen = arguments.only.split(",") if arguments.only else kinds()[:: arguments.every]
    warm()
    rows = []
    for kind in chosen:
        row = tried(kind, arguments)
        rows.append(row)
        told = {key: value for key, value in row.items() if key not in ("type", "elements")}
        print(kind, json.dumps(told)[:1500], flush=True)
    table = summary(rows)
    print("\n" + table)
    if arguments.table:
        page = arguments.table.read_text()
        start, end = "<!-- architectures.py: from here -->\n", "<!-- architectures.py: to here -->"
        before, rest = page.split(start)
        arguments.table.write_text(before + start + table + "\n" + end + rest.split(end)[1])
    wrong = any(verdict(row, case) == "wrong" for row in rows if "not built" not in row for case in CASES)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
