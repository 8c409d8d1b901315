"""Reads models from an S3 server that is not ours, moto, and writes to it: plans, merges, verifies, and takes what is wrong.

    pip install 'moto[server]' boto3
    cargo build --features hub,store
    python tests/store/s3.py --weld target/debug/weld

Uploads the models of recipes/family, merges them from `s3://`, and compares with the merge of the folders, byte by byte.
"""

import argparse
import filecmp
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import boto3
import boto3.s3.transfer
from moto.server import ThreadedMotoServer

logging.getLogger("werkzeug").setLevel(logging.ERROR)

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["base", "sort", "add"]
RECIPE = """merge_method: ties
base_model: {at}base
models:
  - {{model: {at}sort, parameters: {{weight: 0.6, density: 0.5}}}}
  - {{model: {at}add, parameters: {{weight: 0.4, density: 0.5}}}}
dtype: bfloat16
"""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--weld", type=Path, required=True)
    weld = parser.parse_args().weld.resolve()
    work = Path(tempfile.mkdtemp())
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://127.0.0.1:{port}"
    keys = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "geheim-geheim", "AWS_REGION": "us-east-1"}
    plain = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment = plain | keys | {"AWS_ENDPOINT_URL": endpoint, "XDG_CACHE_HOME": str(work / "cache"), "HOME": str(work)}
    s3 = boto3.client("s3", endpoint_url=endpoint, aws_access_key_id="someone", aws_secret_access_key="x", region_name="us-east-1")
    s3.create_bucket(Bucket="models")
    for name in NAMES:
        folder = ROOT / "recipes/family" / name
        for file in folder.rglob("*"):
            if file.is_file():
                s3.upload_file(str(file), "models", f"family/{name}/{file.relative_to(folder)}")

    def run(*words, code=0, **more):
        done = subprocess.run([weld, *words], cwd=work, env=environment | more, capture_output=True, text=True)
        said = done.stdout + done.stderr
        assert code is None or done.returncode == code, (words, done.returncode, said)
        assert "geheim" not in said, said
        return said

    (work / "local.yml").write_text(RECIPE.format(at=f"{ROOT}/recipes/family/"))
    (work / "recipe.yml").write_text(RECIPE.format(at="s3://models/family/"))
    run("merge", "local.yml", "local", "-q")
    print(run("plan", "recipe.yml").splitlines()[0])
    for limit in [[], ["--scratch-limit", "2MB"]]:
        run("merge", "recipe.yml", "merged", "--force", "-q", *limit)
        for name in ["model.safetensors", "config.json", "tokenizer.json"]:
            assert filecmp.cmp(work / "local" / name, work / "merged" / name, shallow=False), name
        assert run("verify", "merged", "--full").count("passed")
    # Adapters too, in turn and in parts.
    run("extract-lora", "s3://models/family/base", "s3://models/family/sort", "lora", "--rank", "4", "-q")
    for file in (work / "lora").iterdir():
        s3.upload_file(str(file), "models", f"family/lora/{file.name}")
    adapted = "merge_method: linear\nmodels: [{{model: {0}base+{1}@0.5, parameters: {{weight: 1}}}}]\n"
    (work / "local-lora.yml").write_text(adapted.format(f"{ROOT}/recipes/family/", "lora"))
    (work / "lora.yml").write_text(adapted.format("s3://models/family/", "s3://models/family/lora"))
    run("merge", "local-lora.yml", "local-lora", "-q")
    run("merge", "lora.yml", "lora-in-turn", "--scratch-limit", "2MB", "-q")
    run("merge", "lora.yml", "lora-in-parts", "--part", "1/1", "--scratch-limit", "2MB", "-q")
    run("join", "lora-in-parts", "-q")
    for name in ["lora-in-turn", "lora-in-parts"]:
        assert filecmp.cmp(work / "local-lora/model.safetensors", work / name / "model.safetensors", shallow=False), name
        run("verify", name, "--full")

    # To the store, in several weight files and in one; a checkpoint that is there is replaced only with --force.
    def there(folder):
        listed = s3.list_objects_v2(Bucket="models", Prefix=folder + "/").get("Contents", [])
        return {entry["Key"][len(folder) + 1 :]: s3.get_object(Bucket="models", Key=entry["Key"])["Body"].read() for entry in listed}

    def is_written(folder, local):
        files = {path.relative_to(work / local).as_posix(): path.read_bytes() for path in (work / local).rglob("*") if path.is_file()}
        found = there(folder)
        assert found.keys() == files.keys(), (found.keys(), files.keys())
        wrong = [name for name, data in files.items() if found[name] != data and name not in ["README.md", "weldment.lock.json"]]
        assert not wrong, wrong
        assert not s3.list_multipart_uploads(Bucket="models").get("Uploads"), "uploads are left"

    for size, local, force in [("5GB", "whole", []), ("300KB", "cut", ["--force"])]:
        run("merge", "recipe.yml", local, "--shard-size", size, "-q")
        run("merge", "recipe.yml", "s3://models/made/merged", "--shard-size", size, "-q", *force)
        is_written("made/merged", local)
        assert run("verify", "s3://models/made/merged", "--full").count("passed")
    # In parts, of which a worker is killed, and one is done again; then a run that goes on where it was.
    out = "s3://models/made/parts"
    cut = ["--shard-size", "100KB", "-q"]
    run("merge", "recipe.yml", "in-one", *cut)
    killed = subprocess.Popen([weld, "merge", "recipe.yml", out, "--part", "1/3", *cut], cwd=work, env=environment)
    while not there("made/parts.weld-parts"):
        time.sleep(0.001)
    killed.kill()
    killed.wait()
    for part in ["3/3", "2/3"]:
        run("merge", "recipe.yml", out, "--part", part, *cut)
    if "1 of 3 parts are missing" in run("join", out, code=None):
        run("merge", "recipe.yml", out, "--part", "1/3", *cut)
    run("merge", "recipe.yml", out, "--part", "2/3", "--force", *cut)
    assert "was done before" in run("merge", "recipe.yml", out, "--part", "3/3", *cut[:2])
    assert not there("made/parts")
    assert "something else than this part" in run("merge", "recipe.yml", out, "--part", "3/3", "--seed", "4", *cut, code=1)
    run("join", out)
    is_written("made/parts", "in-one")
    assert not there("made/parts.weld-parts")
    run("verify", out, "--part", "1/2", "--full")
    words = ["merge", "recipe.yml", "s3://models/made/resumed", "--resume", *cut]
    killed = subprocess.Popen([weld, *words], cwd=work, env=environment)
    while not any(name.endswith("weldment.part.json") for name in there("made/resumed.weld-parts")):
        time.sleep(0.001)
    killed.kill()
    killed.wait()
    said = run(*words, "--format", "json")
    assert "weight files had been finished before" in said, said
    is_written("made/resumed", "in-one")
    assert not there("made/resumed.weld-parts")
    assert "is not empty" in run("merge", "recipe.yml", "s3://models/made/merged", code=1)
    assert "which would be lost" in run("merge", "recipe.yml", "s3://models/family/base", "--force", code=1)
    assert "and no checkpoint" in run("merge", "recipe.yml", "s3://models/made", "--force", code=2)
    assert "NoSuchBucket" in run("merge", "recipe.yml", "s3://nobucket/made", code=2)
    run("extract-lora", "s3://models/family/base", "s3://models/family/sort", "s3://models/made/lora", "--rank", "4", "-q")
    run("verify", "s3://models/made/lora")

    run("inspect", "s3://models/family/sort")
    run("inspect", "s3://models/family/sort/model.safetensors")
    run("check", "s3://models/family/sort")
    run("diff", "s3://models/family/sort", f"{ROOT}/recipes/family/sort")

    # The same file once more has another ETag, and verify says so; its values are right.
    lock = json.loads((work / "merged/weldment.lock.json").read_text())
    tags = [file["etag"] for model in lock["inputs"] for file in model["files"].values()]
    assert len(tags) == 3 and all(tags), tags
    parts = boto3.s3.transfer.TransferConfig(multipart_threshold=1 << 19, multipart_chunksize=5 << 20)
    s3.upload_file(str(ROOT / "recipes/family/sort/model.safetensors"), "models", "family/sort/model.safetensors", Config=parts)
    said = run("verify", "merged", "--full")
    assert "verify.input-etag" in said and "passed" in said, said

    # What lies in the store is another model now: verify says so.
    s3.upload_file(str(ROOT / "recipes/family/cipher/model.safetensors"), "models", "family/sort/model.safetensors")
    assert "wrong" in run("verify", "merged", "--full", code=1)

    # What is wrong has a message, and nothing is left.
    for words, said in [
        (["inspect", "s3://models/none"], "there is nothing at"),
        (["inspect", "s3://nobucket/x"], "NoSuchBucket"),
        (["inspect", "s3://models/family/sort", "--offline"], "network is not to be used"),
        (["inspect", "s3://someone:geheim-geheim@models/x"], "user's name or a password"),
    ]:
        assert said in run(*words, code=2), (words, said, run(*words, code=2))
    left = [path for path in (work / "cache").rglob("*") if path.is_file() and "places" not in str(path)]
    assert not any("model" in path.name for path in left), left
    server.stop()
    shutil.rmtree(work)
    print("passed")


if __name__ == "__main__":
    sys.exit(main())
