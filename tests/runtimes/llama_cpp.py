"""Runs GGUF files in llama.cpp's prebuilt libraries for the CPU, as setup.sh lays them.

    import llama_cpp
    llama_cpp.logits("model.gguf", [1, 2, 3])  # one row of logits for each token
    llama_cpp.tokens("model.gguf", "some text")  # the ids that it cuts a text into

Each call is a process of its own, as llama.cpp aborts where it meets what it cannot run: that is a RuntimeError here.
Everything is F32 and without its faster kernels, so that what differs from another runtime is what is computed.
"""

import ctypes as c
import json
import pathlib
import subprocess
import sys

# Beside the environment that runs this.
LIBRARIES = pathlib.Path(sys.prefix).parent / "lib-llama.cpp"


def logits(path, ids, libraries=LIBRARIES):
    import numpy

    rows = numpy.frombuffer(_run(libraries, "logits", path, json.dumps([int(i) for i in ids])), numpy.float32)
    return rows.reshape(len(ids), -1)


def tokens(path, text, libraries=LIBRARIES):
    return json.loads(_run(libraries, "tokens", path, text))


def _run(libraries, what, path, argument):
    command = [sys.executable, __file__, str(libraries), what, str(path), argument]
    done = subprocess.run(command, capture_output=True)
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        told = [line for line in said if "error" in line.lower() or "assert" in line.lower()]
        raise RuntimeError((told or said or ["it died"])[0])
    return done.stdout


# The structures of llama.h in v0.5.0.
def _structure(name, *fields):
    return type(name, (c.Structure,), {"_fields_": [(n, kind) for kind, names in fields for n in names.split()]})


ModelParams = _structure(
    "ModelParams",
    (c.c_void_p, "devices tensor_buft_overrides"),
    (c.c_int32, "n_gpu_layers split_mode load_mode lazy_mode main_gpu"),
    (c.c_void_p, "tensor_split progress_callback progress_callback_user_data kv_overrides"),
    (c.c_bool, "vocab_only check_tensors use_extra_bufts no_host no_alloc load_mtp"),
)
ContextParams = _structure(
    "ContextParams",
    (c.c_uint32, "n_ctx n_batch n_ubatch n_seq_max n_rs_seq n_outputs_max n_outputs_max_per_seq"),
    (c.c_int32, "n_threads n_threads_batch ctx_type rope_scaling_type pooling_type attention_type flash_attn_type"),
    (c.c_float, "rope_freq_base rope_freq_scale yarn_ext_factor yarn_attn_factor yarn_beta_fast yarn_beta_slow"),
    (c.c_uint32, "yarn_orig_ctx"),
    (c.c_float, "defrag_thold"),
    (c.c_void_p, "cb_eval cb_eval_user_data"),
    (c.c_int, "type_k type_v"),
    (c.c_void_p, "abort_callback abort_callback_data"),
    (c.c_bool, "embeddings offload_kqv no_perf op_offload swa_full kv_unified"),
    (c.c_void_p, "samplers"),
    (c.c_size_t, "n_samplers"),
    (c.c_void_p, "ctx_other"),
)
Batch = _structure("Batch", (c.c_int32, "n_tokens"), (c.c_void_p, "token embd pos n_seq_id seq_id logits"))


class Library:
    def __init__(self, folder):
        folder = pathlib.Path(folder)
        self.ggml = c.CDLL(str(next(folder.glob("libggml.v*.so"))), mode=c.RTLD_GLOBAL)
        self.llama = c.CDLL(str(next(folder.glob("libllama.v*.so"))))
        self.ggml.ggml_backend_load_all_from_path(str(folder).encode())
        self.llama.llama_backend_init()

    def call(self, name, result, *arguments):
        function = getattr(self.llama, name)
        function.restype = result
        return function(*arguments)

    def model(self, path, vocab_only):
        params = self.call("llama_model_default_params", ModelParams)
        params.vocab_only = vocab_only
        params.use_extra_bufts = False
        model = self.call("llama_model_load_from_file", c.c_void_p, str(path).encode(), params)
        if not model:
            sys.exit("error: it does not load")
        return c.c_void_p(model), c.c_void_p(self.call("llama_model_get_vocab", c.c_void_p, c.c_void_p(model)))

    def logits(self, path, ids):
        model, vocab = self.model(path, False)
        params = self.call("llama_context_default_params", ContextParams)
        params.n_ctx = params.n_batch = params.n_ubatch = max(256, len(ids))
        params.n_threads = params.n_threads_batch = 2
        params.flash_attn_type = 0
        params.type_k = params.type_v = 0
        params.swa_full = True
        context = c.c_void_p(self.call("llama_init_from_model", c.c_void_p, model, params))
        if not context.value:
            sys.exit("error: there is no context for it")
        held = (c.c_int32 * len(ids))(*ids)
        wanted = (c.c_int8 * len(ids))(*[1] * len(ids))
        batch = Batch(n_tokens=len(ids), token=c.addressof(held), logits=c.addressof(wanted))
        if status := self.call("llama_decode", c.c_int32, context, batch):
            sys.exit(f"error: llama_decode returned {status}")
        width = self.call("llama_vocab_n_tokens", c.c_int32, vocab)
        rows = self.call("llama_get_logits", c.POINTER(c.c_float), context)
        return c.string_at(rows, 4 * width * len(ids))

    def tokens(self, path, text):
        _, vocab = self.model(path, True)
        text = text.encode()
        room = len(text) + 16
        ids = (c.c_int32 * room)()
        count = self.call("llama_tokenize", c.c_int32, vocab, text, len(text), ids, room, True, True)
        return json.dumps(ids[:count]).encode()


def main():
    libraries, what, path, argument = sys.argv[1:]
    library = Library(libraries)
    found = library.logits(path, json.loads(argument)) if what == "logits" else library.tokens(path, argument)
    sys.stdout.buffer.write(found)


if __name__ == "__main__":
    main()
