"""Times a merge from a store to a store against plain range reads and multipart writes of the same bytes, on the same server.

    pip install 'moto[server]' boto3
    python benches/stores.py --weld target/release/weld [--size 0.5] [--rounds 5]

`linear` of two models of so many gigabytes each, in eight weight files, read with `--scratch-limit` and written to the same
bucket of moto, a server of S3's protocol. The plain transfers have as many requests at a time as weld, of the same lengths:
eight of 16 MiB that read, and eight of 8 MiB that write, at the same time. They compute nothing, and keep nothing on the
disk. Rounds of both follow each other; prints medians, and weld's own memory.
"""

import argparse
import array
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import botocore.config

COLUMNS, FILES = 2048, 8
READ, WRITE, AT_A_TIME = 16 << 20, 8 << 20, 8
SERVER = """
import logging, sys, time
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
ThreadedMotoServer(ip_address="127.0.0.1", port=int(sys.argv[1])).start()
time.sleep(1e6)
"""


def shard(rows, number, seed):
    """A weight file of one matrix, of normally distributed bfloat16."""
    drawn = random.Random(seed)
    values = array.array("f", (drawn.gauss(0, 0.02) for _ in range(1 << 18)))
    halves = array.array("H", memoryview(values).cast("B").cast("H")[1::2].tolist()).tobytes()
    length = rows * COLUMNS * 2
    name = f"model.layers.{number}.mlp.up_proj.weight"
    header = json.dumps({name: {"dtype": "BF16", "shape": [rows, COLUMNS], "data_offsets": [0, length]}}).encode()
    data = (halves * (length // len(halves) + 1))[:length]
    return name, len(header).to_bytes(8, "little") + header + data


def upload(s3, gigabytes):
    rows = int(gigabytes * 1e9) // (2 * COLUMNS * FILES)
    for seed, model in enumerate("ab"):
        places = {}
        for number in range(FILES):
            file = f"model-{number + 1:05}-of-{FILES:05}.safetensors"
            name, data = shard(rows, number, seed * FILES + number)
            places[name] = file
            s3.put_object(Bucket="models", Key=f"{model}/{file}", Body=data)
        index = {"metadata": {"total_size": 0}, "weight_map": places}
        s3.put_object(Bucket="models", Key=f"{model}/model.safetensors.index.json", Body=json.dumps(index))


def plain(s3):
    """Reads both models by ranges, and writes as much as one of them in pieces."""
    listed = [entry for model in "ab" for entry in s3.list_objects_v2(Bucket="models", Prefix=model + "/")["Contents"]]
    weights = [entry for entry in listed if entry["Key"].endswith("safetensors")]

    def read(range_of):
        key, start, end = range_of
        answer = s3.get_object(Bucket="models", Key=key, Range=f"bytes={start}-{end - 1}")
        assert len(answer["Body"].read()) == end - start

    ranges = [(file["Key"], at, min(at + READ, file["Size"])) for file in weights for at in range(0, file["Size"], READ)]
    data = os.urandom(WRITE)
    uploads, pieces = [], []
    for file in weights[:FILES]:
        key = "plain/" + file["Key"]
        upload = s3.create_multipart_upload(Bucket="models", Key=key)["UploadId"]
        uploads.append((key, upload))
        count = -(-file["Size"] // WRITE)
        last = file["Size"] - (count - 1) * WRITE
        pieces += [(key, upload, number + 1, WRITE if number + 1 < count else last) for number in range(count)]

    def write(piece):
        key, upload, number, size = piece
        s3.upload_part(Bucket="models", Key=key, UploadId=upload, PartNumber=number, Body=data[:size])

    with ThreadPoolExecutor(AT_A_TIME) as readers, ThreadPoolExecutor(AT_A_TIME) as writers:
        done = [*[readers.submit(read, one) for one in ranges], *[writers.submit(write, one) for one in pieces]]
        for one in done:
            one.result()
    for key, upload in uploads:
        parts = s3.list_parts(Bucket="models", Key=key, UploadId=upload, MaxParts=1000)["Parts"]
        listed = [{"PartNumber": part["PartNumber"], "ETag": part["ETag"]} for part in parts]
        s3.complete_multipart_upload(Bucket="models", Key=key, UploadId=upload, MultipartUpload={"Parts": listed})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--weld", type=Path, required=True)
    parser.add_argument("--size", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    weld, work = arguments.weld.resolve(), Path(tempfile.mkdtemp())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    keys = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "x", "AWS_REGION": "us-east-1"}
    os.environ |= keys | {"AWS_ENDPOINT_URL": endpoint, "XDG_CACHE_HOME": str(work / "cache")}
    pool = botocore.config.Config(max_pool_connections=4 * AT_A_TIME)
    s3 = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", config=pool)
    for _ in range(100):
        try:
            s3.create_bucket(Bucket="models")
            break
        except Exception:
            time.sleep(0.1)
    upload(s3, arguments.size)
    entries = [{"model": f"s3://models/{model}", "parameters": {"weight": 0.5}} for model in "ab"]
    (work / "recipe.yml").write_text(json.dumps({"merge_method": "linear", "models": entries}))
    words = [weld, "merge", "recipe.yml", "s3://models/merged", "--force", "--no-check", "--format", "json"]
    words += ["--shard-size", str(int(arguments.size * 1e9 / FILES * 1.01)), "--scratch-limit", "500MB"]

    def clear(prefix):
        for entry in s3.list_objects_v2(Bucket="models", Prefix=prefix).get("Contents", []):
            s3.delete_object(Bucket="models", Key=entry["Key"])

    def merge():
        done = subprocess.run(words, cwd=work, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["peak_memory"]

    ratios, times, memory = [], [], []
    for number in range(arguments.rounds):
        clear("plain/"), clear("merged/")
        start = time.perf_counter()
        plain(s3)
        floor = time.perf_counter() - start
        clear("plain/")
        start = time.perf_counter()
        memory.append(merge())
        own = time.perf_counter() - start
        print(f"round {number + 1}: plain {floor:.2f} s, weld {own:.2f} s, {own / floor:.2f} of it", flush=True)
        ratios.append(own / floor)
        times.append((floor, own))
    print(f"weld takes {statistics.median(ratios):.2f} of the plain transfers, {max(memory) / 2**20:.0f} MiB of own memory")
    server.kill()
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
