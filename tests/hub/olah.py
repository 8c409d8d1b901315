"""Merges two models by their ids from olah, a mirror of the Hub that others wrote; reads the cache with huggingface_hub;
pushes the result to the tests' own server, and verifies it from there by its lock alone.

    pip install olah==0.5.4 huggingface_hub
    cargo build --features hub && cargo build -p weldment-hub --example hub_server
    python3 tests/hub/olah.py

WELD and HUB_SERVER name other binaries than those of target/debug.
"""

import contextlib
import hashlib
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
WELD = os.environ.get("WELD", str(ROOT / "target/debug/weld"))
HUB_SERVER = os.environ.get("HUB_SERVER", str(ROOT / "target/debug/examples/hub_server"))
RECIPE = """merge_method: linear
models:
- {model: acme/sort, parameters: {weight: 0.6}}
- {model: acme/add, parameters: {weight: 0.4}}
"""


def git(folder, *words):
    names = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "core.autocrlf=false"]
    subprocess.run(["git", *names, *words], cwd=folder, check=True, capture_output=True)


def repository(mirrors, name, model):
    """A git repository as the Hub has it: weights are pointers, their content lies with git-lfs."""
    folder = mirrors / "models/acme" / name
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    if new:
        git(folder, "init", "-b", "main")
    for file in (ROOT / "recipes/family" / model).iterdir():
        content = file.read_bytes()
        if file.suffix == ".safetensors":
            sha256 = hashlib.sha256(content).hexdigest()
            place = folder / ".git/lfs/objects" / sha256[:2] / sha256[2:4] / sha256
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
            content = (
                f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n"
            ).encode()
        (folder / file.name).write_bytes(content)
    git(folder, "add", "-A")
    git(folder, "commit", "-m", "model")


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@contextlib.contextmanager
def running(port, command, folder, log):
    with open(log, "wb") as out:
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=subprocess.STDOUT)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5)
                break
            except urllib.error.HTTPError:
                break
            except OSError:
                time.sleep(0.2)
        else:
            sys.exit(f"{command[0]} does not answer: {log.read_text()}")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def weld(folder, cache, endpoint, *words, **variables):
    environment = {
        "PATH": os.environ["PATH"],
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_CACHE": str(folder / cache),
        "XDG_CACHE_HOME": str(folder / f"{cache}-records"),
        **variables,
    }
    done = subprocess.run([WELD, *words], cwd=folder, env=environment, capture_output=True, text=True)
    print(f"weld {' '.join(words)}: {done.returncode}")
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return done.stdout


def main():
    folder = pathlib.Path(tempfile.mkdtemp())
    try:
        mirrors = folder / "mirrors"
        repository(mirrors, "sort", "sort")
        repository(mirrors, "add", "add")
        (folder / "recipe.yml").write_text(RECIPE)
        port, own = free_port(), free_port()
        (folder / "olah.toml").write_text(
            f'[basic]\nhost = "127.0.0.1"\nport = {port}\nrepos-path = "{folder}/repos"\n'
            f'mirrors-path = ["{mirrors}"]\n[accessibility]\noffline = true\n'
        )
        olah = [
            str(pathlib.Path(sys.executable).parent / "olah-cli"),
            "--config", str(folder / "olah.toml"), "--host", "127.0.0.1", "--port", str(port),
        ]
        with (
            running(port, olah, folder, folder / "olah.log") as mirror,
            running(own, [HUB_SERVER, str(own)], folder, folder / "server.log") as server,
        ):
            weld(folder, "one", mirror, "plan", "recipe.yml")
            weld(folder, "one", mirror, "merge", "recipe.yml", "merged")
            read_by_huggingface_hub(folder / "one")
            # With less room: the same weights, and the cache does not keep those that it was made from.
            weld(folder, "less", mirror, "merge", "recipe.yml", "less-room", "--scratch-limit", "1200KB")
            made, again = (folder / out / "model.safetensors" for out in ("merged", "less-room"))
            assert made.read_bytes() == again.read_bytes()
            assert not list((folder / "less").glob("models--*/blobs/" + "?" * 64))
            weld(folder, "one", server, "push", "merged", "acme/merged", HF_TOKEN="hf_good")
            # The models go on; what counts is the lock.
            repository(mirrors, "sort", "reverse")
            shutil.rmtree(folder / "merged")
            weld(folder, "two", server, "check", "acme/merged", HF_TOKEN="hf_good")
            weld(folder, "two", mirror, "verify", "acme/merged", "--full")
    finally:
        shutil.rmtree(folder)
    print("merged from olah, pushed, and verified from there")


def read_by_huggingface_hub(cache):
    """huggingface_hub finds what weld fetched, without a network."""
    from huggingface_hub import scan_cache_dir, snapshot_download

    for model in ("sort", "add"):
        found = snapshot_download(f"acme/{model}", cache_dir=cache, local_files_only=True)
        weights = pathlib.Path(found) / "model.safetensors"
        source = ROOT / "recipes/family" / model / "model.safetensors"
        assert weights.read_bytes() == source.read_bytes(), weights
    report = scan_cache_dir(cache)
    assert not report.warnings, report.warnings
    assert len(report.repos) == 2, report.repos


if __name__ == "__main__":
    main()
