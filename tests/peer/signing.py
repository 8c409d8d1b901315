"""Holds signatures against the package model-signing, both ways: what weld signs it verifies, and the other way round.

    python -m venv target/envs/signing && target/envs/signing/bin/pip install model-signing==1.1.1 pyOpenSSL jsonschema
    target/envs/signing/bin/python tests/peer/signing.py --weld target/debug/weld [--schemas SPEC/schemas/v1.0]

pyOpenSSL is wanted by model-signing 1.1.1 and not asked for. --schemas: those of ossf/model-signing-spec, a checkout of
which is not kept here; with them, what weld writes is held against them too.

Every case is one folder, one key and one way of signing; then each of a list of changes, which both must refuse. A row
says how many were told alike. --attestation FILE holds what `weld attest` wrote against the protobufs of the package
in-toto-attestation, which model-signing brings.
"""

import argparse
import base64
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from model_signing import hashing, signing, verifying

CURVES = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
NAMES = ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "a.x", "a/z", "a/b/c d",
         "empty", "ünïcödé \u6a21\u578b.txt", "sub/.gitignore", "quote\"back\\slash", "README.md"]


def model(folder, seed):
    draw = random.Random(seed)
    for name in NAMES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"" if name == "empty" else draw.randbytes(draw.choice([1, 55, 64, 4096, 3_000_001])))
    for name in [".git/config", ".gitignore", ".gitattributes", ".github/x.yml"]:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("not signed")


def keys(folder, curve, form):
    key = ec.generate_private_key(curve)
    formats = {"sec1": serialization.PrivateFormat.TraditionalOpenSSL, "pkcs8": serialization.PrivateFormat.PKCS8}
    pem = serialization.Encoding.PEM
    (folder / "key.pem").write_bytes(key.private_bytes(pem, formats[form], serialization.NoEncryption()))
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / "pub.pem").write_bytes(public)


def changes(folder):
    """Each: what it is called, what does it."""
    first = folder / NAMES[1]

    def flip():
        data = bytearray(first.read_bytes())
        data[-1] ^= 1
        first.write_bytes(data)

    def link():
        (folder.parent / "elsewhere").write_bytes(first.read_bytes())
        first.unlink()
        first.symlink_to("../elsewhere")

    return {
        "flip": flip,
        "longer": lambda: first.write_bytes(first.read_bytes() + b"\0"),
        "shorter": lambda: first.write_bytes(first.read_bytes()[:-1]),
        "remove": lambda: (folder / "a/z").unlink(),
        "add": lambda: (folder / "a/new").write_text("x"),
        "add below": lambda: ((folder / "new").mkdir(), (folder / "new/x").write_text("x")),
        "rename": lambda: (folder / "a.x").rename(folder / "A.x"),
        "exchange": lambda: (first.rename(folder / "t"), (folder / NAMES[2]).rename(first), (folder / "t").rename(folder / NAMES[2])),
        "link": link,
    }


class Sides:
    def __init__(self, weld, work):
        self.weld, self.work = weld, work

    def run(self, *arguments):
        done = subprocess.run([self.weld, *map(str, arguments)], cwd=self.work, capture_output=True, text=True)
        assert done.returncode in (0, 1), (arguments, done.returncode, done.stdout, done.stderr)
        return done.returncode == 0

    def sign(self, signature, target="m"):
        assert self.run("sign", target, "--key", "key.pem", "--signature", signature, "-q")

    def verify(self, signature, target="m"):
        return self.run("verify", target, "--key", "pub.pem", "--signature", signature, "-q")

    def config(self, signature, options):
        config = hashing.Config()
        serialize = getattr(config, options.get("use", "use_file_serialization"))
        serialize(**options.get("with", {}))
        inside = os.path.relpath(self.work / signature, self.work / "m")
        return config.set_ignored_paths(paths=[] if inside.startswith("..") else [inside]).set_allow_symlinks(
            options.get("links", False))

    def sign_by_package(self, signature, options, target="m"):
        signer = signing.Config().use_elliptic_key_signer(private_key=self.work / "key.pem")
        signer.set_hashing_config(self.config(signature, options)).sign(self.work / target, self.work / signature)

    def verify_by_package(self, signature, target="m", options=None):
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=self.work / "pub.pem")
        if options:
            # From the signature alone it reads neither ranges (their length is a float there) nor that links are
            # followed.
            verifier.set_hashing_config(self.config(signature, options))
        try:
            verifier.verify(self.work / target, self.work / signature)
            return True
        except Exception:  # It raises whatever comes first.
            return False


WAYS = {
    "weld": None,
    "package": {},
    "package, blake3": {"with": {"hashing_algorithm": "blake3"}},
    "package, shards": {"use": "use_shard_serialization", "with": {"shard_size": 1_000_000}},
    "package, links": {"links": True},
}


def schemas(folder):
    import jsonschema
    import referencing

    loaded = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    registry = referencing.Registry().with_resources(
        (schema["$id"], referencing.Resource.from_contents(schema)) for schema in loaded)
    of = lambda kind: next(s for s in loaded if f"/{kind}/" in s["$id"])
    return [jsonschema.Draft202012Validator(of(kind), registry=registry) for kind in ("bundle", "statement")]


def attestation(path):
    """Whether a statement is one of in-toto v1 with SLSA provenance v1, and has no field that these do not have."""
    from google.protobuf import json_format
    from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
    from in_toto_attestation.v1 import statement, statement_pb2

    text = path.read_text()
    statement.Statement.copy_from_pb(json_format.Parse(text, statement_pb2.Statement())).validate()
    predicate = json_format.Parse(json.dumps(json.loads(text)["predicate"]), provenance_pb2.Provenance())
    assert predicate.build_definition.build_type and predicate.run_details.builder.id
    assert predicate.build_definition.resolved_dependencies


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weld", required=True, type=pathlib.Path)
    parser.add_argument("--schemas", type=pathlib.Path)
    parser.add_argument("--attestation", type=pathlib.Path, help="what `weld attest` wrote: check only this")
    arguments = parser.parse_args()
    if arguments.attestation:
        attestation(arguments.attestation)
        return 0
    weld, validators = arguments.weld.resolve(), arguments.schemas and schemas(arguments.schemas)
    wrong = 0
    print("| key | signed by | signature | both pass | changes that both refuse |\n| --- | --- | --- | --- | --- |")
    for curve in CURVES:
        for form in ("sec1", "pkcs8"):
            for way, options in WAYS.items():
                for signature in ("m/model.sig", "beside.sig"):
                    with tempfile.TemporaryDirectory() as work:
                        work = pathlib.Path(work)
                        keys(work, CURVES[curve], form)
                        (work / "m").mkdir()
                        model(work / "m", 1)
                        sides = Sides(weld, work)
                        if options is not None and options.get("links"):
                            (work / "m/inside").symlink_to("config.json")
                        if options is None:
                            sides.sign(signature)
                        else:
                            sides.sign_by_package(signature, options)
                        if validators and options is None:
                            bundle = json.loads((work / signature).read_text())
                            validators[0].validate(bundle)
                            validators[1].validate(json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"])))
                        both = sides.verify(signature), sides.verify_by_package(signature, options=options)
                        told, of = 0, 0
                        shutil.copytree(work / "m", work / "kept", symlinks=True)
                        for name in changes(work / "m"):
                            if name == "link" and options and options.get("links"):
                                continue  # Then it is what was signed.
                            shutil.rmtree(work / "m")
                            shutil.copytree(work / "kept", work / "m", symlinks=True)
                            changes(work / "m")[name]()
                            of += 1
                            alike = not sides.verify(signature), not sides.verify_by_package(signature, options=options)
                            told += all(alike)
                            if not all(alike):
                                print(name, alike, file=sys.stderr)
                        good = both == (True, True) and told == of
                        wrong += not good
                        print(f"| {curve} {form} | {way} | {signature} | {both == (True, True)} | {told} of {of} |")
    # A model of one file.
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        keys(work, CURVES["P-256"], "pkcs8")
        (work / "one.safetensors").write_bytes(b"x" * 1000)
        sides = Sides(weld, work)
        sides.sign("w.sig", "one.safetensors")
        sides.sign_by_package("p.sig", {}, "one.safetensors")
        told = [check(s, "one.safetensors") for s in ("w.sig", "p.sig") for check in (sides.verify, sides.verify_by_package)]
        (work / "one.safetensors").write_bytes(b"y" * 1000)
        told += [not check(s, "one.safetensors") for s in ("w.sig", "p.sig") for check in (sides.verify, sides.verify_by_package)]
        wrong += not all(told)
        print(f"\none file: {sum(told)} of {len(told)} right")
    print(f"{wrong} wrong")
    return wrong > 0


if __name__ == "__main__":
    sys.exit(main())
